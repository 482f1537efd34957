//! Shared ctypes objects with a lock: under `billiard/sharedctypes.py`.
#![allow(unsafe_code)] // the buffer protocol

use std::ffi::c_int;

use pyo3::PyTraverseError;
use pyo3::exceptions::PyTypeError;
use pyo3::ffi;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple};

use super::late::{self, Late};
use super::synchronize::anylock::AnyLock;

#[derive(Debug)]
struct Parts {
    obj: Py<PyAny>,
    lock: AnyLock,
}

/// An object and its lock. *Process-local*; what they stand for is shared.
#[pyclass(frozen, subclass, module = "billiard._core")]
pub struct Guarded {
    parts: Late<Parts>,
}

impl Guarded {
    fn parts(&self) -> PyResult<&Parts> {
        self.parts.get().ok_or_else(|| late::missing("object"))
    }
}

#[pymethods]
impl Guarded {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self { parts: Late::new() }
    }

    fn __init__(&self, obj: Bound<'_, PyAny>, lock: Bound<'_, PyAny>) -> PyResult<()> {
        let parts = Parts {
            obj: obj.unbind(),
            lock: AnyLock::new(lock),
        };
        late::once(self.parts.set(parts), "object")
    }

    #[getter]
    fn _obj(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        Ok(self.parts()?.obj.clone_ref(py))
    }

    #[getter]
    fn _lock<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(self.parts()?.lock.object(py))
    }

    /// The object, which can be used without the lock.
    fn get_obj(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self._obj(py)
    }

    /// The lock.
    fn get_lock<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self._lock(py)
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

    /// The object's bytes, without the lock.
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let obj = &slf.get().parts()?.obj;
        // SAFETY: the interpreter gave us `view` to fill; the object that fills it is also the
        // one that the view holds and gives back.
        let failed = unsafe { ffi::PyObject_GetBuffer(obj.as_ptr(), view, flags) };
        if failed != 0 {
            Err(PyErr::fetch(slf.py()))
        } else {
            Ok(())
        }
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        let Some(parts) = self.parts.get() else {
            return Ok(());
        };
        visit.call(&parts.obj)?;
        parts.lock.visit(&visit)
    }
}

/// A property of a [`Guarded`] object: an attribute of what it guards, with the lock held.
/// *Process-local*.
#[pyclass(frozen, module = "billiard._core")]
pub struct GuardedField {
    name: Py<PyString>,
}

impl GuardedField {
    /// An exception here leaves the lock free, also the one that says that its owner has died:
    /// whoever gets that has not asked to hold it.
    fn with<'py, T>(
        instance: &Bound<'py, PyAny>,
        access: impl FnOnce(&Bound<'py, PyAny>) -> PyResult<T>,
    ) -> PyResult<T> {
        let py = instance.py();
        let Ok(guarded) = instance.cast::<Guarded>() else {
            return Err(PyTypeError::new_err("not an object with a lock"));
        };
        let parts = guarded.get().parts()?;
        if let Err(error) = parts.lock.acquire(py) {
            if parts.lock.owner_died(py, &error) {
                parts.lock.release(py)?;
            }
            return Err(error);
        }
        let result = access(parts.obj.bind(py));
        parts.lock.release(py)?;
        result
    }
}

#[pymethods]
impl GuardedField {
    #[new]
    fn new(py: Python<'_>, name: &str) -> Self {
        Self {
            name: PyString::intern(py, name).unbind(),
        }
    }

    fn __get__<'py>(
        slf: Bound<'py, Self>,
        instance: Option<&Bound<'py, PyAny>>,
        _owner: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        match instance {
            None => Ok(slf.into_any()),
            Some(instance) => {
                Self::with(instance, |obj| obj.getattr(slf.get().name.bind(obj.py())))
            }
        }
    }

    fn __set__(&self, instance: &Bound<'_, PyAny>, value: &Bound<'_, PyAny>) -> PyResult<()> {
        Self::with(instance, |obj| obj.setattr(self.name.bind(obj.py()), value))
    }

    #[getter]
    fn __name__(&self, py: Python<'_>) -> Py<PyString> {
        self.name.clone_ref(py)
    }
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Guarded>()?;
    module.add_class::<GuardedField>()
}
