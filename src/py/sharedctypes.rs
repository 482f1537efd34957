//! Shared ctypes objects with a lock: under `billiard/sharedctypes.py`.
#![allow(unsafe_code)] // the buffer protocol, and what is called most without PyO3

use std::ffi::{CString, c_int, c_void};

use pyo3::PyTraverseError;
use pyo3::exceptions::PyAttributeError;
use pyo3::ffi;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyString, PyTuple, PyType};

use super::late::{self, Late};
use super::synchronize::anylock::AnyLock;
use super::{direct, make};

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

    fn begin(&self, obj: Bound<'_, PyAny>, lock: Bound<'_, PyAny>) -> PyResult<()> {
        let parts = Parts {
            obj: obj.unbind(),
            lock: AnyLock::new(lock)?,
        };
        late::once(self.parts.set(parts), "object")
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
        self.begin(obj, lock)
    }

    #[getter]
    fn _obj(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        Ok(self.parts()?.obj.clone_ref(py))
    }

    #[getter]
    fn _lock<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(self.parts()?.lock.object(py))
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

impl Parts {
    /// Calls `access` with the lock held.
    ///
    /// An exception here leaves the lock free, also the one that says that its owner has died:
    /// whoever gets that has not asked to hold it.
    fn with<'py, T>(
        &self,
        py: Python<'py>,
        access: impl FnOnce(&Bound<'py, PyAny>) -> PyResult<T>,
    ) -> PyResult<T> {
        if let Err(error) = self.lock.acquire(py) {
            if self.lock.owner_died(py, &error) {
                self.lock.release(py)?;
            }
            return Err(error);
        }
        let result = access(self.obj.bind(py));
        self.lock.release(py)?;
        result
    }
}

/// The object that a method or property was asked of.
///
/// # Safety
/// The caller has the GIL and `slf` is a `Guarded`: descriptors see to that.
#[inline]
unsafe fn guarded(slf: &*mut ffi::PyObject) -> &Guarded {
    // SAFETY: as the caller says.
    unsafe {
        Bound::ref_from_ptr(Python::assume_attached(), slf)
            .cast_unchecked::<Guarded>()
            .get()
    }
}

/// Raises that the object has no parts.
///
/// # Safety
/// As for [`direct::attach`].
#[cold]
unsafe fn missing() -> *mut ffi::PyObject {
    // SAFETY: as the caller says.
    unsafe { direct::attach(|py| direct::raise(py, late::missing("object"))) }
}

unsafe extern "C" fn get_obj(slf: *mut ffi::PyObject, _: *mut ffi::PyObject) -> *mut ffi::PyObject {
    // SAFETY: called by the interpreter as a method without arguments; the object is held by its
    // parts.
    unsafe {
        match guarded(&slf).parts.get() {
            Some(parts) => ffi::Py_NewRef(parts.obj.as_ptr()),
            None => missing(),
        }
    }
}

unsafe extern "C" fn get_lock(
    slf: *mut ffi::PyObject,
    _: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    // SAFETY: as above.
    unsafe {
        match guarded(&slf).parts.get() {
            Some(parts) => ffi::Py_NewRef(parts.lock.as_ptr()),
            None => missing(),
        }
    }
}

/// An attribute, with the lock held.
unsafe extern "C" fn get_field(slf: *mut ffi::PyObject, name: *mut c_void) -> *mut ffi::PyObject {
    let name: *mut ffi::PyObject = name.cast();
    // SAFETY: called by the interpreter as a getter, with the closure of `property`, which is a
    // string; the caller holds `slf`, and with it the object.
    unsafe {
        let Some(parts) = guarded(&slf).parts.get() else {
            return missing();
        };
        if !parts.lock.try_acquire() {
            return direct::attach(|py| {
                let name = Bound::from_borrowed_ptr(py, name);
                let value = parts.with(py, |obj| obj.getattr(name.cast::<PyString>()?));
                value.map_or_else(|error| direct::raise(py, error), Bound::into_ptr)
            });
        }
        let value = ffi::PyObject_GetAttr(parts.obj.as_ptr(), name);
        if parts.lock.try_release() {
            return value;
        }
        direct::attach(|py| {
            let value = Bound::from_owned_ptr_or_err(py, value);
            let value = parts.lock.release(py).and(value);
            value.map_or_else(|error| direct::raise(py, error), Bound::into_ptr)
        })
    }
}

/// Sets an attribute with the lock held.
unsafe extern "C" fn set_field(
    slf: *mut ffi::PyObject,
    value: *mut ffi::PyObject,
    name: *mut c_void,
) -> c_int {
    let name: *mut ffi::PyObject = name.cast();
    let end = |py: Python<'_>, done: PyResult<()>| match done {
        Ok(()) => 0,
        Err(error) => {
            direct::raise(py, error);
            -1
        }
    };
    // SAFETY: called by the interpreter as a setter, with the closure of `property`, which is a
    // string; the caller holds `slf`, and with it the object, and the value.
    unsafe {
        let Some(parts) = guarded(&slf).parts.get() else {
            missing();
            return -1;
        };
        if value.is_null() {
            let error = PyAttributeError::new_err("it cannot be deleted");
            return direct::attach(|py| end(py, Err(error)));
        }
        if !parts.lock.try_acquire() {
            return direct::attach(|py| {
                let name = Bound::from_borrowed_ptr(py, name);
                let value = Bound::from_borrowed_ptr(py, value);
                let done = parts.with(py, |obj| obj.setattr(name.cast::<PyString>()?, value));
                end(py, done)
            });
        }
        let failed = ffi::PyObject_SetAttr(parts.obj.as_ptr(), name, value);
        if parts.lock.try_release() {
            return failed;
        }
        direct::attach(|py| {
            let done = PyErr::take(py).map_or(Ok(()), Err);
            end(py, parts.lock.release(py).and(done))
        })
    }
}

/// A property of [`Guarded`] objects: the attribute `name` of what they guard, with the lock held.
#[pyfunction]
#[pyo3(signature = (name, /))]
fn guarded_field<'py>(name: &Bound<'py, PyString>) -> PyResult<Bound<'py, PyAny>> {
    /// Those that were made, by name: they stay for ever.
    static MADE: PyOnceLock<Py<PyDict>> = PyOnceLock::new();
    let py = name.py();
    let made = MADE.get_or_init(py, || PyDict::new(py).unbind()).bind(py);
    if let Some(field) = made.get_item(name)? {
        return Ok(field);
    }
    let interned = PyString::intern(py, name.to_str()?).unbind();
    let text = Box::leak(CString::new(name.to_str()?)?.into_boxed_c_str());
    let class = py.get_type::<Guarded>();
    // SAFETY: the functions take a `Guarded` and a string, which stays for ever.
    let field = unsafe {
        direct::property(
            &class,
            text,
            (get_field, set_field),
            interned.into_ptr().cast(),
        )?
    };
    made.set_item(name, &field)?;
    Ok(field)
}

/// A new object of this class, which has this lock: without a call of its `__init__`.
#[pyfunction]
#[pyo3(signature = (class, obj, lock, /))]
fn new_guarded<'py>(
    class: &Bound<'py, PyType>,
    obj: Bound<'py, PyAny>,
    lock: Bound<'py, PyAny>,
) -> PyResult<Bound<'py, Guarded>> {
    let guarded = make::bare::<Guarded>(class, &PyTuple::empty(class.py()))?;
    guarded.get().begin(obj, lock)?;
    Ok(guarded)
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Guarded>()?;
    let class = module.py().get_type::<Guarded>();
    let methods = [
        (
            c"get_obj",
            c"get_obj($self)\n--\n\nThe object, which can be used without the lock.",
            get_obj as ffi::PyCFunction,
        ),
        (c"get_lock", c"get_lock($self)\n--\n\nThe lock.", get_lock),
    ];
    for (name, doc, function) in methods {
        let function = ffi::PyMethodDefPointer {
            PyCFunction: function,
        };
        // SAFETY: functions without arguments that take a `Guarded`.
        unsafe { direct::put_method(&class, (name, doc), function, ffi::METH_NOARGS)? };
    }
    module.add_function(wrap_pyfunction!(guarded_field, module)?)?;
    module.add_function(wrap_pyfunction!(new_guarded, module)?)
}
