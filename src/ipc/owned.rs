//! A mutex in one word that knows the process that holds it.
//!
//! ```text
//!  bits   0-30 pid of the owner, 0: free      31 SLEEPERS (see `word`)      32-63 its start stamp
//!
//!  try_acquire  free → (me, my stamp)             otherwise fails
//!  release      (me, my stamp) → free, wakes one if SLEEPERS
//!  wait         not free: sets SLEEPERS, sleeps; now and then looks whether the owner still runs:
//!               (dead, its stamp) → (me, my stamp), and says so
//! ```
//! The owner is in the word that is exchanged, so there is no instant at which it is held by
//! nobody knows whom: wherever a process is killed, the word tells the others.

use std::time::Duration;

use nix::errno::Errno;

use super::wait::{Pace, Sleeper, Slept};
use super::word::{SLEEPERS, Word};
use crate::sys::life::Identity;

const PID: u64 = SLEEPERS - 1;

/// How the mutex was got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Got {
    /// The time was over.
    Not,
    /// From an owner that released it.
    Free,
    /// From an owner that died with it: what it guards may be half changed.
    FromTheDead(Identity),
}

fn mark(who: Identity) -> u64 {
    u64::from(who.stamp) << 32 | (u64::from(who.pid) & PID)
}

/// The owner, if there is one.
#[inline]
pub fn owner(word: &impl Word) -> Option<Identity> {
    let now = word.load();
    let pid = (now & PID) as u32;
    (pid != 0).then_some(Identity {
        pid,
        stamp: (now >> 32) as u32,
    })
}

#[inline]
pub fn is_free(word: &impl Word) -> bool {
    word.load() & PID == 0
}

#[inline]
pub fn is_held_by(word: &impl Word, who: Identity) -> bool {
    word.load() & !SLEEPERS == mark(who)
}

#[inline]
pub fn try_acquire(word: &impl Word, me: Identity) -> bool {
    word.update(|now| (now & PID == 0).then_some(mark(me) | now & SLEEPERS))
        .is_ok()
}

/// Gives it up; only for the owner.
#[inline]
pub fn release(word: &impl Word) {
    if let Ok(before) = word.update(|now| Some(now & SLEEPERS))
        && before & SLEEPERS != 0
    {
        word.wake_one();
    }
}

/// Acquires, sleeping as long as it takes; `EINTR` on a signal, and now and then without one.
///
/// `runs` says whether a process still runs: `life::runs` outside of models and tests.
pub fn wait(
    word: &impl Word,
    me: Identity,
    timeout: Option<Duration>,
    runs: impl Fn(Identity) -> bool,
) -> nix::Result<Got> {
    let mut sleeper = Sleeper::new(timeout, Pace::watchful());
    loop {
        if try_acquire(word, me) {
            return Ok(Got::Free);
        }
        let held = word.update(|now| (now & PID != 0).then_some(now | SLEEPERS));
        let Ok(seen) = held else { continue };
        let slept = sleeper.sleep(word, seen | SLEEPERS)?;
        if slept != Slept::Woken
            && let Some(got) = take_from_dead(word, me, &runs)
        {
            return Ok(got);
        }
        match slept {
            Slept::Woken => {}
            // Time for the caller to look at signals, see `wait`.
            Slept::Slice => return Err(Errno::EINTR),
            Slept::Deadline => return Ok(Got::Not),
        }
    }
}

/// Takes it over if its owner has died.
pub fn take_from_dead(
    word: &impl Word,
    me: Identity,
    runs: impl Fn(Identity) -> bool,
) -> Option<Got> {
    let dead = owner(word).filter(|who| !runs(*who))?;
    let taken =
        word.update(|now| (now & !SLEEPERS == mark(dead)).then_some(mark(me) | now & SLEEPERS));
    taken.is_ok().then_some(Got::FromTheDead(dead))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Instant;

    use super::*;

    const A: Identity = Identity { pid: 7, stamp: 70 };
    const B: Identity = Identity { pid: 8, stamp: 80 };

    /// [`wait`] for those whom no signal interests.
    fn wait_through(
        word: &AtomicU64,
        me: Identity,
        timeout: Option<Duration>,
        runs: impl Fn(Identity) -> bool,
    ) -> Got {
        let end = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            match wait(word, me, left, &runs) {
                Err(Errno::EINTR) => {}
                other => return other.unwrap(),
            }
        }
    }

    #[test]
    fn one_owner_at_a_time() {
        let word = AtomicU64::new(0);
        assert!(try_acquire(&word, A) && !try_acquire(&word, B));
        assert_eq!(owner(&word), Some(A));
        assert!(is_held_by(&word, A) && !is_held_by(&word, B));
        let reborn = Identity { stamp: 71, ..A };
        assert!(!is_held_by(&word, reborn), "the pid is used again");
        release(&word);
        assert!(is_free(&word) && try_acquire(&word, B));
    }

    #[test]
    fn a_live_owner_keeps_it() {
        let word = AtomicU64::new(0);
        try_acquire(&word, A);
        let got = wait_through(&word, B, Some(Duration::from_millis(2)), |_| true);
        assert_eq!(got, Got::Not);
        assert_eq!(owner(&word), Some(A));
    }

    #[test]
    fn a_dead_owner_loses_it_and_the_next_one_is_told() {
        let word = AtomicU64::new(0);
        try_acquire(&word, A);
        let got = wait_through(&word, B, None, |who| who != A);
        assert_eq!(got, Got::FromTheDead(A));
        assert_eq!(owner(&word), Some(B));
        release(&word);
        assert_eq!(word.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn many_threads_take_turns() {
        let (word, total) = (AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for pid in 1..5 {
                let (word, total) = (&word, &total);
                scope.spawn(move || {
                    for _ in 0..500 {
                        let me = Identity { pid, stamp: 1 };
                        assert_eq!(wait_through(word, me, None, |_| true), Got::Free);
                        let seen = total.load(Ordering::Relaxed);
                        total.store(seen + 1, Ordering::Relaxed);
                        release(word);
                    }
                });
            }
        });
        assert_eq!(total.load(Ordering::Relaxed), 2000);
    }
}

#[cfg(all(test, loom))]
mod models {
    use loom::sync::Arc;
    use loom::thread;

    use super::*;
    use crate::ipc::word_model::{ModelWord, check};

    const DEAD: Identity = Identity { pid: 7, stamp: 70 };

    fn someone(pid: u32) -> Identity {
        Identity { pid, stamp: 1 }
    }

    #[test]
    fn loom_one_owner_and_no_waiter_is_forgotten() {
        check(2, || {
            let word = Arc::new(ModelWord::new(0));
            let body = |word: &ModelWord, pid: u32| {
                assert_eq!(wait(word, someone(pid), None, |_| true), Ok(Got::Free));
                assert_eq!(owner(word), Some(someone(pid)));
                release(word);
            };
            let others: Vec<_> = (1..3)
                .map(|pid| {
                    let word = word.clone();
                    thread::spawn(move || body(&word, pid))
                })
                .collect();
            body(&word, 3);
            others.into_iter().for_each(|other| other.join().unwrap());
            assert!(is_free(&*word));
        });
    }

    #[test]
    fn loom_one_heir_learns_of_the_death() {
        check(2, || {
            let word = Arc::new(ModelWord::impatient(mark(DEAD)));
            let body = |word: &ModelWord, pid: u32| {
                let got = loop {
                    match wait(word, someone(pid), None, |who| who != DEAD) {
                        Err(Errno::EINTR) => {}
                        other => break other.unwrap(),
                    }
                };
                assert_eq!(owner(word), Some(someone(pid)));
                release(word);
                got == Got::FromTheDead(DEAD)
            };
            let other = {
                let word = word.clone();
                thread::spawn(move || body(&word, 1))
            };
            let mine = body(&word, 2);
            assert!(mine != other.join().unwrap());
        });
    }
}
