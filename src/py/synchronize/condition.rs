//! Condition variables.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pyo3::PyTraverseError;
use pyo3::exceptions::{PyAssertionError, PyOverflowError, PyValueError};
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use super::anylock::AnyLock;
use super::wait_for;
use crate::ipc::arena::Block;
use crate::ipc::condition::{self, Ticket};
use crate::ipc::spin::{self, Spinner};
use crate::py::block::Deadline;
use crate::py::error::os_error;
use crate::py::heap;
use crate::py::late::{self, Late};
use crate::sys::cpu;
use crate::sys::memory::LineRef;

/// The word of its line where who last notified was.
const WHERE: usize = condition::WORDS;

#[derive(Debug)]
struct Parts {
    block: Arc<Block>,
    line: LineRef,
    lock: AnyLock,
    spinner: Spinner,
    /// where who last notified this process was, see `cpu`
    notifier: AtomicU64,
}

/// A condition variable over a lock. *Process-shared* words; a forked child inherits them.
#[pyclass(frozen, subclass, dict, weakref, module = "billiard._core")]
pub struct Condition {
    parts: Late<Parts>,
}

impl Condition {
    #[inline]
    fn parts(&self) -> PyResult<&Parts> {
        self.parts.get().ok_or_else(|| late::missing("condition"))
    }

    fn set_parts(&self, lock: Bound<'_, PyAny>, block: Arc<Block>) -> PyResult<()> {
        let parts = Parts {
            line: block.line(),
            block,
            lock: AnyLock::new(lock)?,
            spinner: Spinner::default(),
            notifier: AtomicU64::new(0),
        };
        late::once(self.parts.set(parts), "condition")
    }
}

impl Parts {
    fn words(&self) -> condition::Condition<'_, AtomicU64> {
        condition::Condition(&self.line[..condition::WORDS])
    }

    fn check_mine(&self, py: Python<'_>) -> PyResult<()> {
        if self.lock.is_mine(py)? {
            Ok(())
        } else {
            Err(PyAssertionError::new_err(
                "the lock of the condition is not held by this thread",
            ))
        }
    }

    fn wait(&self, py: Python<'_>, ticket: Ticket, deadline: Deadline) -> PyResult<bool> {
        let words = self.words();
        // Not before the lock can be had: waiting for it would be a second wait.
        let look = || (self.lock.seems_free() && words.go(ticket)).then_some(true);
        let sleep = |left| words.wait(ticket, left);
        let elsewhere = || cpu::is_elsewhere(&self.notifier);
        let notified = wait_for(
            py,
            deadline,
            (&self.spinner, spin::ANSWER),
            elsewhere,
            look,
            sleep,
        );
        if notified.is_err() {
            words.leave(ticket);
        } else {
            // Now, before this process notifies and is the last one itself.
            let there = self.line[WHERE].load(Ordering::Relaxed);
            self.notifier.store(there, Ordering::Relaxed);
        }
        notified
    }

    fn notify(&self, py: Python<'_>, n: u32) -> PyResult<()> {
        self.check_mine(py)?;
        cpu::note(&self.line[WHERE]);
        let count = self.words().notify(n);
        match &self.lock {
            _ if count == 0 => {}
            AnyLock::Ours(lock) => lock.get().parts()?.defer(&self.line, count),
            AnyLock::Other(_) => self.words().wake(count),
        }
        Ok(())
    }
}

#[pymethods]
impl Condition {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self { parts: Late::new() }
    }

    fn __init__(&self, lock: Bound<'_, PyAny>) -> PyResult<()> {
        self.set_parts(lock, Arc::new(Block::new(64).map_err(os_error)?))
    }

    /// Makes an object without parts the condition in this block: what unpickling does.
    fn _adopt(&self, lock: Bound<'_, PyAny>, block: &heap::Block) -> PyResult<()> {
        self.set_parts(lock, Arc::clone(&block.block))
    }

    /// The block of shared memory that the condition is in.
    #[getter]
    fn _block(&self) -> PyResult<heap::Block> {
        Ok(heap::Block {
            block: Arc::clone(&self.parts()?.block),
        })
    }

    #[getter]
    fn _lock<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(self.parts()?.lock.object(py))
    }

    /// How many wait, and how many were notified but have not gone yet.
    fn _counts(&self) -> PyResult<(u32, u32)> {
        Ok(self.parts()?.words().counts())
    }

    /// Acquires the lock.
    #[pyo3(signature = (*args, **kwargs))]
    fn acquire<'py>(
        &self,
        py: Python<'py>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        self._lock(py)?.call_method("acquire", args, kwargs)
    }

    /// Releases the lock.
    fn release<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self._lock(py)?.call_method0("release")
    }

    fn __enter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.parts()?.lock.enter(py)
    }

    #[pyo3(signature = (exc_type=None, exc_value=None, traceback=None))]
    fn __exit__<'py>(
        &self,
        py: Python<'py>,
        exc_type: Option<&Bound<'py, PyAny>>,
        exc_value: Option<&Bound<'py, PyAny>>,
        traceback: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        self.parts()?
            .lock
            .exit(py, [exc_type, exc_value, traceback])
    }

    /// Releases the lock, waits until notified, and acquires it again. False after `timeout`
    /// seconds.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let parts = self.parts()?;
        parts.check_mine(py)?;
        let deadline = Deadline::after(timeout)?;
        let ticket = parts
            .words()
            .enter()
            .map_err(|_| PyOverflowError::new_err("too many waiters"))?;
        let count = match parts.lock.release_all(py) {
            Ok(count) => count,
            Err(error) => {
                parts.words().leave(ticket);
                return Err(error);
            }
        };
        let (notified, raised) = match parts.wait(py, ticket, deadline) {
            Ok(notified) => (notified, None),
            Err(error) => (false, Some(error)),
        };
        parts.lock.acquire_all(py, count, raised)?;
        Ok(notified)
    }

    /// Lets `n` waiters go as soon as the lock is free.
    #[pyo3(signature = (n=1))]
    fn notify(&self, py: Python<'_>, n: i64) -> PyResult<()> {
        if n < 0 {
            return Err(PyValueError::new_err(format!("cannot notify {n} waiters")));
        }
        self.parts()?
            .notify(py, u32::try_from(n).unwrap_or(u32::MAX))
    }

    /// Lets all waiters go as soon as the lock is free.
    fn notify_all(&self, py: Python<'_>) -> PyResult<()> {
        self.parts()?.notify(py, u32::MAX)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.parts
            .get()
            .map_or(Ok(()), |parts| parts.lock.visit(&visit))
    }
}
