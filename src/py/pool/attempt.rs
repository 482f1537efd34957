//! A lock that is taken only if it is free.

use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

/// `with Attempt(lock) as held:` takes a lock if it is free, and lets go of it in the end.
///
/// A signal's handler that raises finds it held with somebody who lets go, or not held: between
/// `acquire` and `try` in Python there is an instant with neither.
#[pyclass(frozen, module = "billiard._core")]
pub struct Attempt {
    lock: Py<PyAny>,
    held: AtomicBool,
}

#[pymethods]
impl Attempt {
    #[new]
    fn new(lock: Py<PyAny>) -> Self {
        Self {
            lock,
            held: AtomicBool::new(false),
        }
    }

    fn __enter__(&self, py: Python<'_>) -> PyResult<bool> {
        let acquired = self
            .lock
            .call_method1(py, intern!(py, "acquire"), (false,))?;
        let held = acquired.is_truthy(py)?;
        self.held.store(held, Ordering::Relaxed);
        Ok(held)
    }

    #[pyo3(signature = (*_exc_info))]
    fn __exit__(&self, _exc_info: &Bound<'_, PyTuple>) -> PyResult<()> {
        let py = _exc_info.py();
        if self.held.swap(false, Ordering::Relaxed) {
            self.lock.call_method0(py, intern!(py, "release"))?;
        }
        Ok(())
    }
}
