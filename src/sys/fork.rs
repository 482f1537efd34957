//! Which process this is, and what happens around `fork`.
//!
//! `fork` is heard of through `pthread_atfork`, so also one that the interpreter knows nothing of.
//! The order around it:
//!
//! ```text
//!  parent                                             child (one thread: the one that forked)
//!  prepare handlers, last registered first
//!  fork ────────────────────────────────────────────► pid and generation renewed
//!  parent handlers, in order                          child handlers, in order
//! ```
//!
//! A child handler takes no lock: [`ForkLock::hold`] takes it before the fork, in the thread that
//! forks, and [`ForkLock::let_go`] frees it on both sides after, so that the child finds what the
//! lock guards in a state that some thread left complete.

use std::cell::UnsafeCell;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::futex;

static PID: AtomicU32 = AtomicU32::new(0);
static GENERATION: AtomicU32 = AtomicU32::new(0);

/// This process, without a system call.
#[inline]
pub fn pid() -> u32 {
    match PID.load(Ordering::Relaxed) {
        0 => first_pid(),
        pid => pid,
    }
}

#[cold]
fn first_pid() -> u32 {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        PID.store(std::process::id(), Ordering::Relaxed);
        on_fork(nothing, nothing, new_process);
    });
    PID.load(Ordering::Relaxed)
}

/// How many forks there have been on the way from the first process to this one. What remembers
/// the generation that it was made in knows whether it was inherited.
#[inline]
pub fn generation() -> u32 {
    GENERATION.load(Ordering::Relaxed)
}

extern "C" fn nothing() {}

extern "C" fn new_process() {
    PID.store(std::process::id(), Ordering::Relaxed);
    GENERATION.fetch_add(1, Ordering::Relaxed);
}

/// Registers what runs around every fork from now on, for good.
pub fn on_fork(prepare: extern "C" fn(), parent: extern "C" fn(), child: extern "C" fn()) {
    // SAFETY: the three are functions of this library, which is never unloaded.
    let failed = unsafe { libc::pthread_atfork(Some(prepare), Some(parent), Some(child)) };
    assert!(failed == 0, "pthread_atfork: out of memory");
}

/// A value that a forked child does not drop: a thread that the child does not have may have been
/// changing it at the fork. *Process-local*; in the child it cannot be looked at.
#[derive(Debug)]
pub struct Kept<T> {
    owner: u32,
    value: ManuallyDrop<T>,
}

impl<T> Kept<T> {
    pub fn new(value: T) -> Self {
        Self {
            owner: pid(),
            value: ManuallyDrop::new(value),
        }
    }

    /// The value in any process, for what can be done with it in a forked child.
    pub fn foreign(&self) -> &T {
        &self.value
    }

    /// The value, in the process that made it.
    #[inline]
    pub fn get(&self) -> Option<&T> {
        (self.owner == pid()).then_some(&*self.value)
    }
}

impl<T> Drop for Kept<T> {
    fn drop(&mut self) {
        if self.owner == pid() {
            // SAFETY: dropped here and nowhere else, and not used after.
            unsafe { ManuallyDrop::drop(&mut self.value) };
        }
    }
}

/// A mutex that can be held across a fork. *Process-local*; the child inherits it free.
#[derive(Debug)]
pub struct ForkLock<T> {
    /// 0 free, 1 held, 2 held and waited for
    word: AtomicU64,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached only while the word is held, by one thread at a time.
unsafe impl<T: Send> Sync for ForkLock<T> {}

impl<T> ForkLock<T> {
    pub const fn new(value: T) -> Self {
        Self {
            word: AtomicU64::new(0),
            value: UnsafeCell::new(value),
        }
    }

    pub fn lock(&self) -> ForkGuard<'_, T> {
        self.hold();
        ForkGuard { lock: self }
    }

    /// Takes the lock until [`let_go`](Self::let_go): what a prepare handler calls.
    pub fn hold(&self) {
        let free = self
            .word
            .compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed);
        if free.is_err() {
            while self.word.swap(2, Ordering::Acquire) != 0 {
                let _ = futex::wait(&self.word, 2, None);
            }
        }
    }

    /// Frees a lock that [`hold`](Self::hold) took, in the parent and in the child of the fork.
    pub fn let_go(&self) {
        if self.word.swap(0, Ordering::Release) == 2 {
            futex::wake(&self.word, 1);
        }
    }

    /// Looks at the value between [`hold`](Self::hold) and [`let_go`](Self::let_go).
    pub fn with_held<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        assert!(self.word.load(Ordering::Relaxed) != 0, "not held");
        // SAFETY: only the handlers around a fork call this, which run in the thread that holds
        // the lock (in the child: the only thread).
        f(unsafe { &mut *self.value.get() })
    }
}

/// The value of a locked [`ForkLock`].
#[derive(Debug)]
pub struct ForkGuard<'a, T> {
    lock: &'a ForkLock<T>,
}

impl<T> Deref for ForkGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: the guard holds the lock.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for ForkGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the guard holds the lock, and is borrowed mutably.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for ForkGuard<'_, T> {
    fn drop(&mut self) {
        self.lock.let_go();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_excludes() {
        let counter = ForkLock::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).for_each(|_| *counter.lock() += 1));
            }
        });
        assert_eq!(*counter.lock(), 4000);
    }

    #[test]
    fn the_pid_is_the_system_s() {
        assert_eq!(pid(), std::process::id());
    }
}
