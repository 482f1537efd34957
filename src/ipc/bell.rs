//! The bell: workers wake the parent when it wants to be woken, and pay a load when it does not.
//!
//! Process-shared, one futex word: `turn << 2 | bits`. `CALLER`: a thread of the parent sleeps on
//! the word; `ENGINE`: the engine wants its eventfd kicked.
//!
//! ```text
//!  sleeper                                   ringer, after publishing a result
//!  set its bit -> value v                    fence
//!  fence, look for results again             v = word; no bit? done
//!    none: FUTEX_WAIT(word, v)               turn + 1, bits kept; lost the swap? look again
//!  awake: take its bit back, turn + 1        FUTEX_WAKE (or the eventfd)
//!                                            somebody was woken: clear the bit, turn + 1
//! ```
//!
//! The bit is cleared only after somebody has really been woken: a ringer that is stopped or
//! killed at any point leaves the bit for the next ringer, and one that came too early for the
//! sleep has changed the word, so that FUTEX_WAIT returns at once. Every change takes a new turn,
//! so that a late clearing cannot take the bit of the next sleep away. What a ringer published
//! that died before its wake-up, the engine finds: it looks at every ring after every death.

use super::atomic::{AtomicU64, Ordering, fence};

pub const CALLER: u64 = 1;
pub const ENGINE: u64 = 2;
const BITS: u64 = CALLER | ENGINE;
const TURN: u64 = BITS + 1;

/// Sleeper: asks to be woken and returns the value to sleep on. It must look for results once more
/// before it sleeps.
pub fn listen(word: &AtomicU64, bit: u64) -> u64 {
    let value = word.fetch_or(bit, Ordering::SeqCst) | bit;
    fence(Ordering::SeqCst);
    value
}

/// Sleeper: does not need to be woken any more. A new turn, too: else a ringer that saw this sleep
/// and clears late would take the bit of the next one.
pub fn ignore(word: &AtomicU64, bit: u64) {
    let mut value = word.load(Ordering::SeqCst);
    while value & bit != 0 {
        let next = (value & !bit).wrapping_add(TURN);
        match word.compare_exchange(value, next, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => return,
            Err(now) => value = now,
        }
    }
}

/// Ringer, after publishing: wakes whoever wants it. `wake` gets the bits that are set and returns
/// those whose sleeper it has certainly reached.
pub fn ring(word: &AtomicU64, mut wake: impl FnMut(u64) -> u64) {
    fence(Ordering::SeqCst);
    let mut value = word.load(Ordering::SeqCst);
    while value & BITS != 0 {
        let bumped = value.wrapping_add(TURN);
        match word.compare_exchange(value, bumped, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => {
                let reached = wake(value & BITS);
                if reached != 0 {
                    let cleared = (bumped & !reached).wrapping_add(TURN);
                    let _ =
                        word.compare_exchange(bumped, cleared, Ordering::SeqCst, Ordering::Relaxed);
                }
                return;
            }
            Err(now) => value = now,
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn one_wake_up_per_sleep_and_none_without() {
        let word = AtomicU64::new(0);
        let mut calls = 0;
        let mut go = |reached| {
            ring(&word, |bits| {
                calls += 1;
                bits & reached
            });
            calls
        };
        assert_eq!(go(BITS), 0);
        let first = listen(&word, CALLER);
        assert_eq!(go(0), 1, "came before the sleep");
        assert_ne!(
            word.load(Ordering::Relaxed),
            first,
            "so the sleep does not begin"
        );
        assert_eq!(go(BITS), 2);
        assert_eq!(go(BITS), 2, "the bit is gone");
        let second = listen(&word, CALLER);
        assert_ne!(first, second);
        ignore(&word, CALLER);
        assert_eq!(go(BITS), 2);
    }
}

#[cfg(all(test, loom))]
mod models {
    use loom::sync::{Arc, Mutex};
    use loom::thread;

    use super::*;

    /// The kernel's side of a futex with one sleeper.
    #[derive(Default)]
    struct Futex {
        asleep: bool,
        woken: bool,
    }

    struct Model {
        word: AtomicU64,
        results: AtomicU64,
        futex: Mutex<Futex>,
    }

    /// How far a worker gets before it is stopped.
    #[derive(Clone, Copy, PartialEq)]
    enum Stop {
        Never,
        BeforeWake,
        AfterWake,
    }

    fn worker(m: &Model, stop: Stop) {
        m.results.fetch_add(1, Ordering::Release);
        ring(&m.word, |_| {
            if stop == Stop::BeforeWake {
                return 0;
            }
            let mut futex = m.futex.lock().unwrap();
            futex.woken |= futex.asleep;
            if futex.asleep && stop == Stop::Never {
                CALLER
            } else {
                0
            }
        });
    }

    /// Waits for two results, and sleeps at most once. How many it saw before that.
    fn caller(m: &Model) -> u64 {
        let mut seen = 0;
        while seen < 2 {
            let value = listen(&m.word, CALLER);
            if m.results.load(Ordering::Acquire) == seen {
                let mut futex = m.futex.lock().unwrap();
                if m.word.load(Ordering::SeqCst) == value {
                    futex.asleep = true;
                    return seen;
                }
            }
            ignore(&m.word, CALLER);
            seen = m.results.load(Ordering::Acquire);
        }
        seen
    }

    #[test]
    fn loom_a_sleeper_is_woken_for_a_result() {
        for stop in [Stop::Never, Stop::BeforeWake, Stop::AfterWake] {
            let mut builder = loom::model::Builder::new();
            builder.preemption_bound = Some(3);
            builder.check(move || {
                let m = Arc::new(Model {
                    word: AtomicU64::new(0),
                    results: AtomicU64::new(0),
                    futex: Mutex::new(Futex::default()),
                });
                let workers: Vec<_> = [stop, Stop::Never]
                    .into_iter()
                    .map(|stop| {
                        let m = m.clone();
                        thread::spawn(move || worker(&m, stop))
                    })
                    .collect();
                let seen = caller(&m);
                for peer in workers {
                    peer.join().unwrap();
                }
                let futex = m.futex.lock().unwrap();
                // Asleep for good is right only with nothing more to come, or one result that its
                // worker was stopped too early to announce.
                let missed = 2 - seen;
                let unannounced = u64::from(stop == Stop::BeforeWake);
                assert!(!futex.asleep || futex.woken || missed <= unannounced);
            });
        }
    }
}
