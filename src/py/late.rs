//! A value of an object that is set after the object was made.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Set once, in `__init__`; until then there is nothing.
///
/// For what `__traverse__` looks at. The interpreter allocates an object as zeros and may run the
/// garbage collector before the fields are written (it does when it makes the `__dict__` of a
/// Python subclass on 3.11), so zeros have to mean "not set". Those of a `OnceLock` mean "set".
#[derive(Debug)]
pub struct Late<T> {
    is_set: AtomicBool,
    value: OnceLock<T>,
}

impl<T> Late<T> {
    pub const fn new() -> Self {
        Self {
            is_set: AtomicBool::new(false),
            value: OnceLock::new(),
        }
    }

    pub fn get(&self) -> Option<&T> {
        if self.is_set.load(Ordering::Acquire) {
            self.value.get()
        } else {
            None
        }
    }

    /// Gives the value back if there is one already.
    pub fn set(&self, value: T) -> Result<(), T> {
        self.value.set(value)?;
        self.is_set.store(true, Ordering::Release);
        Ok(())
    }
}
