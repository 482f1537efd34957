//! A mutex that is nothing but its own word.
//!
//! Implementations that keep who waits in a table of the whole process cannot be used in a library
//! that forks: a fork while any thread changes the table leaves it locked in the child, for every
//! mutex. The standard library's has no table. It marks a mutex whose holder has panicked, which
//! nobody asks about here: a panic becomes an exception of that caller alone.

use std::sync::{self, PoisonError, TryLockError};

pub use std::sync::MutexGuard;

/// *Process-local*. A forked child inherits it as it was: held, if another thread held it.
#[derive(Debug, Default)]
pub struct Mutex<T>(sync::Mutex<T>);

impl<T> Mutex<T> {
    pub const fn new(value: T) -> Self {
        Self(sync::Mutex::new(value))
    }

    #[inline]
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None` if somebody holds it.
    #[inline]
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        match self.0.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(error)) => Some(error.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    pub fn into_inner(self) -> T {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn get_mut(&mut self) -> &mut T {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_of_its_holder_does_not_close_it() {
        let mutex = Mutex::new(1);
        let died = std::thread::scope(|scope| {
            let holder = scope.spawn(|| {
                let _held = mutex.lock();
                assert!(mutex.try_lock().is_none());
                panic!("while it is held");
            });
            holder.join().is_err()
        });
        assert!(died);
        *mutex.lock() += 1;
        assert_eq!(mutex.try_lock().map(|value| *value), Some(2));
    }
}
