//! An event in one word.
//!
//! ```text
//!  bits   0 set      1-30 how often it was set      31 SLEEPERS (see `word`)      32-63 unused, 0
//!
//!  set     not set → set, counted, SLEEPERS cleared; wakes everyone if there were any
//!  clear   set → not set
//!  wait    until it is set, or was set since the wait began (and has been cleared again)
//! ```

use std::time::Duration;

use super::wait::{Pace, Sleeper, Slept};
use super::word::{SLEEPERS, Word};
use crate::sys::futex::EVERYONE;

const SET: u64 = 1;
const COUNT: u64 = SLEEPERS - 1 - SET;

/// What a wait begins with.
#[derive(Clone, Copy, Debug)]
pub struct Since(u64);

#[inline]
pub fn is_set(word: &impl Word) -> bool {
    word.load() & SET != 0
}

pub fn set(word: &impl Word) {
    let before = word.update(|now| {
        let count = now.wrapping_add(SET << 1) & COUNT;
        (now & SET == 0).then_some(count | SET)
    });
    if before.is_ok_and(|before| before & SLEEPERS != 0) {
        word.wake(EVERYONE);
    }
}

pub fn clear(word: &impl Word) {
    let _ = word.update(|now| (now & SET != 0).then_some(now & !SET));
}

#[inline]
pub fn look(word: &impl Word) -> Since {
    Since(word.load() & COUNT)
}

/// Whether it is set or was since then.
#[inline]
pub fn happened(word: &impl Word, since: Since) -> bool {
    let now = word.load();
    now & SET != 0 || now & COUNT != since.0
}

/// Sleeps until [`happened`]: `false` when the time was over, `EINTR` on a signal.
pub fn wait(word: &impl Word, since: Since, timeout: Option<Duration>) -> nix::Result<bool> {
    let mut sleeper = Sleeper::new(timeout, Pace::relaxed());
    while !happened(word, since) {
        let quiet = since.0;
        let marked = word.update(|now| (now & !SLEEPERS == quiet).then_some(quiet | SLEEPERS));
        if marked.is_ok() && sleeper.sleep(word, quiet | SLEEPERS)? == Slept::Deadline {
            return Ok(happened(word, since));
        }
    }
    Ok(true)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    #[test]
    fn setting_lasts_until_it_is_cleared() {
        let word = AtomicU64::new(0);
        assert!(!is_set(&word));
        set(&word);
        set(&word);
        assert!(is_set(&word));
        clear(&word);
        assert!(!is_set(&word));
    }

    #[test]
    fn a_waiter_does_not_miss_what_was_cleared_again() {
        let word = AtomicU64::new(0);
        let since = look(&word);
        set(&word);
        clear(&word);
        assert_eq!(wait(&word, since, None), Ok(true));
        let since = look(&word);
        assert_eq!(
            wait(&word, since, Some(Duration::from_millis(2))),
            Ok(false)
        );
    }

    #[test]
    fn everyone_wakes() {
        let word = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| assert_eq!(wait(&word, look(&word), None), Ok(true)));
            }
            set(&word);
        });
    }
}

#[cfg(all(test, loom))]
mod models {
    use loom::sync::Arc;
    use loom::thread;

    use super::*;
    use crate::ipc::word_model::{ModelWord, check};

    #[test]
    fn loom_waiters_see_what_was_set_even_if_it_is_cleared_at_once() {
        check(3, || {
            let word = Arc::new(ModelWord::new(0));
            let since = look(&*word);
            let waiters: Vec<_> = (0..2)
                .map(|_| {
                    let word = word.clone();
                    thread::spawn(move || assert_eq!(wait(&*word, since, None), Ok(true)))
                })
                .collect();
            set(&*word);
            clear(&*word);
            waiters
                .into_iter()
                .for_each(|waiter| waiter.join().unwrap());
        });
    }
}
