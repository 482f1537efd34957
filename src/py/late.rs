//! What an object gets after it was made: in `__init__`, or when it is unpickled.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

/// The error of an object, a `what`, that did not get it.
#[cold]
pub fn missing(what: &str) -> PyErr {
    PyRuntimeError::new_err(format!("__init__ of the {what} was not called"))
}

/// The error of an object, a `what`, that got it already, if setting it has said so.
pub fn once<T>(set: Result<(), T>, what: &str) -> PyResult<()> {
    set.map_err(|_| PyRuntimeError::new_err(format!("{what} is already initialised")))
}

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
