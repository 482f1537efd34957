//! When to look on for a moment instead of sleeping at once.
//!
//! Going to sleep and being woken costs tens of microseconds, of which the waking side pays some.
//! Looking on saves both if the other side, on another processor, is about to answer. Otherwise it
//! is time stolen from somebody who could work, on a loaded machine from the very process that is
//! being waited for. So each waiter remembers whether its last spins paid.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The longest spin for what is over in moments where it is done at all: a lock is given back, a
/// place is made.
pub const BRIEF: Duration = Duration::from_micros(10);
/// The longest spin for an answer: time for the other side to be woken and to give one. Two sides
/// that ask each other and spin for less never meet, each finds the other asleep. One that spins so
/// long has the answer even of a sleeper, whose next trial then finds it awake.
pub const ANSWER: Duration = Duration::from_micros(100);

/// Certainty that a spin pays.
const SURE: u32 = 256;
/// Below it, spins are rare trials.
const DOUBTFUL: u32 = SURE / 4;
/// It never falls below this: one trial that pays is enough for another spin.
const LEAST: u32 = DOUBTFUL - SURE / 16;
/// One wait in so many is a trial.
const TRIAL: u32 = 128;

/// How spinning has paid lately, for one waiter. Process-local; a forked child starts from what its
/// parent had learnt.
///
/// ```text
///              spin paid: trust rises by an eighth of what is missing
///  rare trials ──────────────────────────────────────────────────────► a spin before every sleep
///  (1 in 128)  ◄──────────────────────────────────────────────────────
///              spin in vain: trust falls by a quarter
/// ```
///
/// A trial is as long as a spin may be. Others are twice as long as it took lately, so that one in
/// vain costs little where answers are quick; each in vain doubles the next.
#[derive(Debug, Default)]
pub struct Spinner {
    trust: AtomicU32,
    waits: AtomicU32,
    /// how long the next may be, in nanoseconds
    limit: AtomicU32,
}

impl Spinner {
    /// Calls `look` until it finds something or the spin has been as long as it may; does not begin
    /// where that has not paid. `many_cpus` is asked before a trial: alone on a processor, spinning
    /// is in vain.
    pub fn spin<T>(
        &self,
        longest: Duration,
        many_cpus: impl FnOnce() -> bool,
        mut look: impl FnMut() -> Option<T>,
    ) -> Option<T> {
        let trust = self.trust.load(Ordering::Relaxed).max(LEAST);
        let mut limit = Duration::from_nanos(self.limit.load(Ordering::Relaxed).into());
        if trust < DOUBTFUL {
            let wait = self.waits.fetch_add(1, Ordering::Relaxed);
            if wait % TRIAL != TRIAL / 2 || !many_cpus() {
                return None;
            }
            limit = longest;
        }
        limit = limit.clamp(BRIEF, longest);
        let start = Instant::now();
        let mut found = None;
        let mut spent = Duration::ZERO;
        while found.is_none() && spent < limit {
            std::hint::spin_loop();
            found = look();
            spent = start.elapsed();
        }
        let (trust, limit) = match found {
            Some(_) => (trust + (SURE - trust).div_ceil(8), limit / 2 + spent),
            None => ((trust - trust.div_ceil(4)).max(LEAST), limit * 2),
        };
        self.trust.store(trust, Ordering::Relaxed);
        self.limit
            .store(limit.min(longest).as_nanos() as u32, Ordering::Relaxed);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spins(spinner: &Spinner, waits: u32, finds: bool) -> u32 {
        let mut begun = 0;
        for _ in 0..waits {
            let mut looked = false;
            spinner.spin(
                BRIEF,
                || true,
                || {
                    looked = true;
                    finds.then_some(())
                },
            );
            begun += u32::from(looked);
        }
        begun
    }

    #[test]
    fn spins_only_while_it_pays() {
        let spinner = Spinner::default();
        assert_eq!(spins(&spinner, 2 * TRIAL, false), 2);
        // three lucky trials, then every time
        spins(&spinner, 3 * TRIAL, true);
        assert_eq!(spins(&spinner, 100, true), 100);
        assert!(spins(&spinner, 2 * TRIAL, false) < 10);
        assert_eq!(spins(&spinner, 2 * TRIAL, false), 2);
    }

    #[test]
    fn spins_in_vain_become_longer_and_paying_ones_shorter() {
        let spinner = Spinner::default();
        let limit = || Duration::from_nanos(spinner.limit.load(Ordering::Relaxed).into());
        spins(&spinner, 8 * TRIAL, true);
        assert!(limit() < 2 * BRIEF);
        for _ in 0..8 {
            spinner.spin(ANSWER, || true, || None::<()>);
        }
        assert_eq!(limit(), ANSWER);
    }

    #[test]
    fn alone_on_a_processor_it_does_not() {
        let spinner = Spinner::default();
        for _ in 0..2 * TRIAL {
            assert_eq!(spinner.spin(BRIEF, || false, || Some(())), None);
        }
    }
}
