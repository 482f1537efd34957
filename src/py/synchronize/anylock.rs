//! A lock that a user may have brought along.

use pyo3::PyTraverseError;
use pyo3::ffi;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;

use super::lock::OwnerDiedError;
use super::semlock::SemLock;

/// One of ours, called without a detour through Python, or anything with its methods.
#[derive(Debug)]
pub enum AnyLock {
    Ours(Py<SemLock>),
    /// Has `acquire` and `release`; for a condition also `_is_mine` and `_count` in `_semlock`.
    Other(Py<PyAny>),
}

impl AnyLock {
    /// Raises AttributeError for what has not even the two methods that all locks have.
    pub fn new(lock: Bound<'_, PyAny>) -> PyResult<Self> {
        match lock.cast_into::<SemLock>() {
            Ok(ours) => Ok(Self::Ours(ours.unbind())),
            Err(other) => {
                let other = other.into_inner();
                other.getattr("acquire")?;
                other.getattr("release")?;
                Ok(Self::Other(other.unbind()))
            }
        }
    }

    pub fn object<'py>(&self, py: Python<'py>) -> Bound<'py, PyAny> {
        match self {
            Self::Ours(lock) => lock.bind(py).as_any().clone(),
            Self::Other(lock) => lock.bind(py).clone(),
        }
    }

    /// The lock itself.
    pub fn as_ptr(&self) -> *mut ffi::PyObject {
        match self {
            Self::Ours(lock) => lock.as_ptr(),
            Self::Other(lock) => lock.as_ptr(),
        }
    }

    /// Acquires it if that needs no waiting and no call of Python.
    #[inline]
    pub fn try_acquire(&self) -> bool {
        matches!(self, Self::Ours(lock) if lock.get().try_acquire())
    }

    /// Releases it if that is no error and needs no call of Python.
    #[inline]
    pub fn try_release(&self) -> bool {
        matches!(self, Self::Ours(lock) if lock.get().try_release())
    }

    #[inline]
    pub fn acquire(&self, py: Python<'_>) -> PyResult<()> {
        match self {
            Self::Ours(lock) => lock.get().enter(py).map(drop),
            Self::Other(lock) => lock.call_method0(py, "acquire").map(drop),
        }
    }

    #[inline]
    pub fn release(&self, py: Python<'_>) -> PyResult<()> {
        match self {
            Self::Ours(lock) => Ok(lock.get().parts()?.release()?),
            Self::Other(lock) => lock.call_method0(py, "release").map(drop),
        }
    }

    /// Whether this error of [`acquire`](Self::acquire) means that it was acquired.
    pub fn owner_died(&self, py: Python<'_>, error: &PyErr) -> bool {
        matches!(self, Self::Ours(_)) && error.is_instance_of::<OwnerDiedError>(py)
    }

    /// What `with` does first.
    pub fn enter<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        match self {
            Self::Ours(lock) => {
                let got = lock.get().enter(py)?;
                Ok(pyo3::types::PyBool::new(py, got).to_owned().into_any())
            }
            Self::Other(lock) => lock.bind(py).call_method0("__enter__"),
        }
    }

    /// What `with` does last.
    pub fn exit<'py>(
        &self,
        py: Python<'py>,
        exception: [Option<&Bound<'py, PyAny>>; 3],
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        match self {
            Self::Ours(lock) => {
                lock.get().parts()?.release()?;
                Ok(None)
            }
            Self::Other(lock) => {
                let [kind, value, traceback] = exception;
                let args = (kind, value, traceback);
                lock.bind(py).call_method1("__exit__", args).map(Some)
            }
        }
    }

    /// Whether it could be acquired just now, as far as is known. Needs no GIL.
    pub fn seems_free(&self) -> bool {
        match self {
            Self::Ours(lock) => lock.get().parts().is_ok_and(|parts| parts.value() > 0),
            Self::Other(_) => true,
        }
    }

    /// Whether this thread holds it.
    pub fn is_mine(&self, py: Python<'_>) -> PyResult<bool> {
        match self {
            Self::Ours(lock) => Ok(lock.get().parts()?.is_mine()),
            Self::Other(lock) => {
                let inner = lock.bind(py).getattr("_semlock")?;
                inner.call_method0("_is_mine")?.is_truthy()
            }
        }
    }

    /// Releases it as often as this thread holds it; how often that was.
    pub fn release_all(&self, py: Python<'_>) -> PyResult<i64> {
        match self {
            Self::Ours(lock) => lock.get().parts()?.release_all(),
            Self::Other(lock) => {
                let inner = lock.bind(py).getattr("_semlock")?;
                let count: i64 = inner.call_method0("_count")?.extract()?;
                (0..count).try_for_each(|_| self.release(py))?;
                Ok(count)
            }
        }
    }

    /// The reverse of [`release_all`](Self::release_all), then raises `pending`.
    pub fn acquire_all(&self, py: Python<'_>, count: i64, pending: Option<PyErr>) -> PyResult<()> {
        match self {
            Self::Ours(lock) => lock.get().parts()?.acquire_all(py, count, pending),
            Self::Other(_) => {
                (0..count).try_for_each(|_| self.acquire(py))?;
                pending.map_or(Ok(()), Err)
            }
        }
    }

    pub fn visit(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        match self {
            Self::Ours(lock) => visit.call(lock),
            Self::Other(lock) => visit.call(lock),
        }
    }
}
