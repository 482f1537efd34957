//! How long to sleep at a time.
//!
//! A process that is killed between being woken and taking what it was woken for would leave the
//! others asleep beside a free word. So nobody sleeps for ever in one piece: every sleeper looks
//! again now and then.

use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::word::Word;

/// The lengths of successive sleeps.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    next: Duration,
    longest: Duration,
    grows: bool,
}

impl Pace {
    /// For words without an owner: 0.1 s at first, doubling up to 5 s, so that an idle waiter
    /// costs next to nothing.
    pub fn relaxed() -> Self {
        Self {
            next: Duration::from_millis(100),
            longest: Duration::from_secs(5),
            grows: true,
        }
    }

    /// For words whose owner may have died: found out within 0.1 s.
    pub fn watchful() -> Self {
        let step = Duration::from_millis(90);
        Self {
            next: step,
            longest: step,
            grows: false,
        }
    }
}

/// A wait against a deadline, in slices.
#[derive(Debug)]
pub struct Sleeper {
    deadline: Option<Instant>,
    pace: Pace,
}

/// How a slice of sleep ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slept {
    /// Woken, or the word had changed: look again.
    Woken,
    /// The slice is over: look again, also at who owns the word.
    Slice,
    /// The deadline had passed before the sleep: give up.
    Deadline,
}

impl Sleeper {
    pub fn new(timeout: Option<Duration>, pace: Pace) -> Self {
        let deadline = timeout.and_then(|t| Instant::now().checked_add(t));
        Self { deadline, pace }
    }

    /// Sleeps on `word` while its low half is `expected`. `EINTR` is for the caller, who looks at
    /// signals: also after the longest slice of a growing pace, for one that came just before a
    /// sleep and has interrupted nothing.
    pub fn sleep(&mut self, word: &impl Word, expected: u64) -> nix::Result<Slept> {
        let mut slice = self.pace.next;
        if let Some(deadline) = self.deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Slept::Deadline);
            }
            slice = slice.min(left);
        }
        match word.wait(expected as u32, Some(slice)) {
            Ok(()) => Ok(Slept::Woken),
            Err(Errno::ETIMEDOUT) if slice == self.pace.longest && self.pace.grows => {
                Err(Errno::EINTR)
            }
            Err(Errno::ETIMEDOUT) => {
                self.pace.next = (self.pace.next * 2).min(self.pace.longest);
                Ok(Slept::Slice)
            }
            Err(errno) => Err(errno),
        }
    }
}
