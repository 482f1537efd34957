//! The word that every protocol here is made of: 64 shared bits that a process can sleep on.
//!
//! Protocols are written against this trait, so that loom can run them on words of its own.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::sys::futex;

/// Bit 31, in the half that the kernel compares: somebody may be asleep on this word. Whoever
/// frees what the word guards then has to wake.
///
/// ```text
///  set      by who is going to sleep, before it does, while it cannot have what it wants
///  kept     by everyone who changes the word otherwise
///  cleared  by a waker that found nobody asleep; it then wakes everyone, for who fell asleep
///           between its look and the clearing (later ones find the flag gone and set it anew)
/// ```
/// A sleeper that is killed leaves at most a flag behind, which costs the next waker one look. A
/// count of sleepers would be wrong for ever.
pub const SLEEPERS: u64 = 1 << 31;

pub trait Word {
    /// With acquire order.
    fn load(&self) -> u64;
    /// With release order.
    fn store(&self, value: u64);
    /// With acquire and release order; the error is what was there.
    fn compare_exchange(&self, current: u64, new: u64) -> Result<u64, u64>;
    /// See [`futex::wait`].
    fn wait(&self, expected: u32, timeout: Option<Duration>) -> nix::Result<()>;
    /// See [`futex::wake`].
    fn wake(&self, count: u32) -> usize;

    /// Changes the word to what `f` makes of it; `None` leaves it. What was there, as `Ok` if it
    /// was changed.
    #[inline]
    fn update(&self, mut f: impl FnMut(u64) -> Option<u64>) -> Result<u64, u64> {
        let mut current = self.load();
        while let Some(new) = f(current) {
            match self.compare_exchange(current, new) {
                Ok(_) => return Ok(current),
                Err(now) => current = now,
            }
        }
        Err(current)
    }

    /// Wakes one sleeper of a word whose [`SLEEPERS`] flag was seen, and clears the flag if there
    /// is none.
    #[cold]
    fn wake_one(&self) {
        if self.wake(1) == 0 {
            let cleared = self.update(|now| (now & SLEEPERS != 0).then_some(now & !SLEEPERS));
            if cleared.is_ok() {
                self.wake(futex::EVERYONE);
            }
        }
    }
}

impl Word for AtomicU64 {
    #[inline]
    fn load(&self) -> u64 {
        self.load(Ordering::Acquire)
    }

    #[inline]
    fn store(&self, value: u64) {
        self.store(value, Ordering::Release);
    }

    #[inline]
    fn compare_exchange(&self, current: u64, new: u64) -> Result<u64, u64> {
        self.compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire)
    }

    fn wait(&self, expected: u32, timeout: Option<Duration>) -> nix::Result<()> {
        futex::wait(self, expected, timeout)
    }

    fn wake(&self, count: u32) -> usize {
        futex::wake(self, count)
    }
}
