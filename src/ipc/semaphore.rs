//! A counting semaphore in one word.
//!
//! ```text
//!  bits   0-30 value      31 SLEEPERS (see `word`)      32-63 unused, 0
//!
//!  try_acquire  value n>0 → n-1            otherwise fails
//!  release      value n<max → n+1, wakes one if SLEEPERS      n = max: fails
//!  wait         value 0: sets SLEEPERS, sleeps while the half is exactly "0 and SLEEPERS"
//! ```
//! Anyone may release: the word knows no owner. A process that dies changes nothing: what it had
//! acquired stays acquired.

use std::time::Duration;

use super::wait::{Pace, Sleeper, Slept};
use super::word::{SLEEPERS, Word};

const VALUE: u64 = SLEEPERS - 1;

/// The highest value of a semaphore, as in POSIX on Linux.
pub const VALUE_MAX: u32 = VALUE as u32;

/// A release would have exceeded the highest value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReleasedTooOften;

#[inline]
pub fn value(word: &impl Word) -> u32 {
    (word.load() & VALUE) as u32
}

#[inline]
pub fn try_acquire(word: &impl Word) -> bool {
    word.update(|now| (now & VALUE != 0).then_some(now.wrapping_sub(1)))
        .is_ok()
}

#[inline]
pub fn release(word: &impl Word, max: u32) -> Result<(), ReleasedTooOften> {
    match word.update(|now| ((now & VALUE) < u64::from(max)).then_some(now.wrapping_add(1))) {
        Ok(before) => {
            if before & SLEEPERS != 0 {
                word.wake_one();
            }
            Ok(())
        }
        Err(_) => Err(ReleasedTooOften),
    }
}

/// Acquires, sleeping as long as it takes: `false` when the time was over, `EINTR` on a signal.
pub fn wait(word: &impl Word, timeout: Option<Duration>) -> nix::Result<bool> {
    let mut sleeper = Sleeper::new(timeout, Pace::relaxed());
    loop {
        if try_acquire(word) {
            return Ok(true);
        }
        let empty = word.update(|now| (now & VALUE == 0).then_some(now | SLEEPERS));
        if empty.is_ok() && sleeper.sleep(word, SLEEPERS)? == Slept::Deadline {
            return Ok(false);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn counts_down_to_zero_and_up_to_the_maximum() {
        let word = AtomicU64::new(2);
        assert!(try_acquire(&word) && try_acquire(&word) && !try_acquire(&word));
        assert_eq!(release(&word, 2), Ok(()));
        assert_eq!(release(&word, 2), Ok(()));
        assert_eq!(release(&word, 2), Err(ReleasedTooOften));
        assert_eq!(value(&word), 2);
    }

    #[test]
    fn waiting_gives_up_at_its_deadline() {
        let word = AtomicU64::new(0);
        assert_eq!(wait(&word, Some(Duration::from_millis(2))), Ok(false));
        assert_eq!(wait(&word, Some(Duration::ZERO)), Ok(false));
    }

    #[test]
    fn a_release_without_sleepers_clears_the_flag() {
        let word = AtomicU64::new(0);
        let _ = wait(&word, Some(Duration::from_millis(1)));
        assert_ne!(word.load(Ordering::Relaxed) & SLEEPERS, 0);
        release(&word, 1).unwrap();
        assert_eq!(word.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn every_release_lets_one_waiter_through() {
        let word = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..500).for_each(|_| assert_eq!(wait(&word, None), Ok(true))));
            }
            scope.spawn(|| (0..2000).for_each(|_| release(&word, VALUE_MAX).unwrap()));
        });
        assert_eq!(value(&word), 0);
    }
}

#[cfg(all(test, loom))]
mod models {
    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicUsize, Ordering};
    use loom::thread;

    use super::*;
    use crate::ipc::word_model::{ModelWord, check};

    #[test]
    fn loom_a_lock_excludes_and_no_waiter_is_forgotten() {
        check(2, || {
            let lock = Arc::new((ModelWord::new(1), AtomicUsize::new(0)));
            let body = |lock: Arc<(ModelWord, AtomicUsize)>| {
                let (word, inside) = &*lock;
                assert_eq!(wait(word, None), Ok(true));
                assert_eq!(inside.fetch_add(1, Ordering::Relaxed), 0);
                inside.fetch_sub(1, Ordering::Relaxed);
                assert_eq!(release(word, 1), Ok(()));
            };
            let others: Vec<_> = (0..2)
                .map(|_| {
                    let lock = lock.clone();
                    thread::spawn(move || body(lock))
                })
                .collect();
            body(lock.clone());
            others.into_iter().for_each(|other| other.join().unwrap());
            assert_eq!(value(&lock.0), 1);
        });
    }

    #[test]
    fn loom_each_release_lets_one_through() {
        check(2, || {
            let word = Arc::new(ModelWord::new(0));
            let waiters: Vec<_> = (0..2)
                .map(|_| {
                    let word = word.clone();
                    thread::spawn(move || assert_eq!(wait(&*word, None), Ok(true)))
                })
                .collect();
            release(&*word, 2).unwrap();
            release(&*word, 2).unwrap();
            waiters
                .into_iter()
                .for_each(|waiter| waiter.join().unwrap());
            assert_eq!(value(&*word), 0);
        });
    }

    #[test]
    fn loom_the_maximum_holds() {
        check(3, || {
            let word = Arc::new(ModelWord::new(0));
            let other = {
                let word = word.clone();
                thread::spawn(move || release(&*word, 1).is_ok())
            };
            let mine = release(&*word, 1).is_ok();
            assert!(mine != other.join().unwrap());
            assert_eq!(value(&*word), 1);
        });
    }
}
