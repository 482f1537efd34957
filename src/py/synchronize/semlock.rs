//! Semaphores and recursive mutexes.

use std::sync::{Arc, OnceLock};

use nix::errno::Errno;
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple, PyType};

use super::lock::{Kind, Parts};
use crate::ipc::arena::Block;
use crate::ipc::semaphore;
use crate::py::error::os_error;
use crate::py::heap;
use crate::py::{late, make};

/// A semaphore or recursive mutex in shared memory. *Process-shared* words; the object itself is
/// *process-local*. A forked child inherits both: it does not own what its parent had acquired.
#[pyclass(frozen, subclass, module = "billiard._core")]
pub struct SemLock {
    parts: OnceLock<Parts>,
}

impl SemLock {
    #[inline]
    pub fn parts(&self) -> PyResult<&Parts> {
        self.parts.get().ok_or_else(|| late::missing("lock"))
    }

    /// Acquires it if that needs no waiting.
    #[inline]
    pub fn try_acquire(&self) -> bool {
        self.parts.get().is_some_and(Parts::try_acquire)
    }

    /// Whether nobody but the caller of `release` can make it free: no owner that could die.
    #[inline]
    pub fn is_semaphore(&self) -> bool {
        self.parts
            .get()
            .is_some_and(|parts| parts.kind == Kind::Semaphore)
    }

    /// Releases it if that is no error.
    #[inline]
    pub fn try_release(&self) -> bool {
        self.parts
            .get()
            .is_some_and(|parts| parts.release().is_ok())
    }

    /// What `with` does.
    #[inline]
    pub fn enter(&self, py: Python<'_>) -> PyResult<bool> {
        let parts = self.parts()?;
        if parts.try_acquire() {
            return Ok(true);
        }
        parts.wait(py, None)
    }

    /// Makes it a new lock.
    fn begin(&self, kind: Kind, value: u32, max: u32) -> PyResult<()> {
        let block = Arc::new(Block::new(64).map_err(os_error)?);
        let parts = Parts::new(block, kind, max);
        if kind == Kind::Semaphore {
            parts.start_with(value);
        }
        self.set(parts)
    }

    fn set(&self, parts: Parts) -> PyResult<()> {
        late::once(self.parts.set(parts), "lock")
    }
}

/// A lock of this kind that can have this value, or what is wrong.
fn check(kind: i32, value: i64, max: i64) -> PyResult<(Kind, u32)> {
    let kind = Kind::new(kind)?;
    for number in [value, max] {
        if !(0..=i64::from(semaphore::VALUE_MAX)).contains(&number) {
            let text = format!(
                "semaphore value {number} is not in 0..{}",
                semaphore::VALUE_MAX
            );
            return Err(PyOSError::new_err((Errno::EINVAL as i32, text)));
        }
    }
    if kind != Kind::Semaphore && (value, max) != (1, 1) {
        return Err(PyValueError::new_err("a mutex has value 1 and maximum 1"));
    }
    Ok((kind, max as u32))
}

#[pymethods]
impl SemLock {
    #[classattr]
    const SEM_VALUE_MAX: u32 = semaphore::VALUE_MAX;

    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self {
            parts: OnceLock::new(),
        }
    }

    #[pyo3(signature = (kind, value, maxvalue, name=None, unlink=true))]
    fn __init__(
        &self,
        kind: i32,
        value: i32,
        maxvalue: i32,
        name: Option<&str>,
        unlink: bool,
    ) -> PyResult<()> {
        let _ = (name, unlink); // it has no name
        let (kind, max) = check(kind, value.into(), maxvalue.into())?;
        self.begin(kind, value as u32, max)
    }

    /// Makes an object without parts the lock in this block: what unpickling does.
    fn _adopt(&self, block: &heap::Block, kind: i32, maxvalue: i64) -> PyResult<()> {
        let (kind, max) = check(kind, 1, maxvalue)?;
        self.set(Parts::new(Arc::clone(&block.block), kind, max))
    }

    #[staticmethod]
    #[pyo3(signature = (handle, kind, maxvalue, name=None))]
    fn _rebuild(
        handle: &heap::Block,
        kind: i32,
        maxvalue: i64,
        name: Option<&str>,
    ) -> PyResult<Self> {
        let _ = name;
        let lock = Self {
            parts: OnceLock::new(),
        };
        lock._adopt(handle, kind, maxvalue)?;
        Ok(lock)
    }

    /// The block of shared memory that the lock is in.
    #[getter]
    fn _block(&self) -> PyResult<heap::Block> {
        Ok(heap::Block {
            block: Arc::clone(&self.parts()?.block),
        })
    }

    #[pyo3(signature = (block=1, timeout=None), text_signature = "($self, block=True, timeout=None)")]
    fn acquire(&self, py: Python<'_>, block: i32, timeout: Option<f64>) -> PyResult<bool> {
        let parts = self.parts()?;
        if parts.try_acquire() {
            return Ok(true);
        }
        if block == 0 {
            return parts.try_again();
        }
        parts.wait(py, timeout)
    }

    fn release(&self) -> PyResult<()> {
        Ok(self.parts()?.release()?)
    }

    fn __enter__(&self, py: Python<'_>) -> PyResult<bool> {
        self.enter(py)
    }

    #[pyo3(signature = (exc_type=None, exc_value=None, traceback=None))]
    fn __exit__(
        &self,
        exc_type: Option<&Bound<'_, PyAny>>,
        exc_value: Option<&Bound<'_, PyAny>>,
        traceback: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let _ = (exc_type, exc_value, traceback);
        Ok(self.parts()?.release()?)
    }

    fn _count(&self) -> PyResult<i64> {
        Ok(self.parts()?.count())
    }

    fn _is_mine(&self) -> PyResult<bool> {
        Ok(self.parts()?.is_mine())
    }

    fn _get_value(&self) -> PyResult<u32> {
        Ok(self.parts()?.value())
    }

    fn _is_zero(&self) -> PyResult<bool> {
        Ok(self.parts()?.value() == 0)
    }

    /// Forgets what this process had acquired. A forked child does so by itself.
    fn _after_fork(&self) -> PyResult<()> {
        self.parts()?.forget();
        Ok(())
    }

    /// Where this process sees the lock.
    #[getter]
    fn handle(&self) -> PyResult<usize> {
        Ok(self.parts()?.block.address().as_ptr() as usize)
    }

    #[getter]
    fn kind(&self) -> PyResult<i32> {
        Ok(self.parts()?.kind as i32)
    }

    #[getter]
    fn maxvalue(&self) -> PyResult<u32> {
        Ok(self.parts()?.max)
    }

    /// None: it has no name in the system.
    #[getter]
    fn name(&self) -> Option<&str> {
        None
    }

    /// Unlinks a named semaphore of the system. Ours have no names.
    #[staticmethod]
    fn sem_unlink(name: &str) -> PyResult<()> {
        sem_unlink(name)
    }
}

/// A new `Lock`, of this class: without a call of its `__init__`, in half the time.
#[pyfunction]
#[pyo3(signature = (class, /))]
pub fn new_lock<'py>(class: &Bound<'py, PyType>) -> PyResult<Bound<'py, SemLock>> {
    let lock = make::bare::<SemLock>(class, &PyTuple::empty(class.py()))?;
    lock.get().begin(Kind::Semaphore, 1, 1)?;
    Ok(lock)
}

/// A new `RLock`, likewise.
#[pyfunction]
#[pyo3(signature = (class, /))]
pub fn new_rlock<'py>(class: &Bound<'py, PyType>) -> PyResult<Bound<'py, SemLock>> {
    let lock = make::bare::<SemLock>(class, &PyTuple::empty(class.py()))?;
    lock.get().begin(Kind::RecursiveMutex, 1, 1)?;
    Ok(lock)
}

/// Unlinks a named semaphore of the system, such as another library's.
#[pyfunction]
pub fn sem_unlink(name: &str) -> PyResult<()> {
    crate::sys::posix_semaphore::unlink(name).map_err(os_error)
}
