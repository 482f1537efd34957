//! The four methods of a lock that are called more often than all others together, without the
//! bookkeeping of PyO3 on the way into every method (see `direct`).
//!
//! Only what succeeds at once is done here, which touches no Python object. Everything else, errors
//! too, goes to the method of the same name in `semlock.rs`, which these stand in front of.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_int};

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple};

use super::semlock::SemLock;
use crate::py::direct;

/// The methods of `semlock.rs`, in the order of [`NAMES`].
static USUAL: PyOnceLock<[Py<PyAny>; 4]> = PyOnceLock::new();
const NAMES: [&str; 4] = ["acquire", "release", "__enter__", "__exit__"];
const ACQUIRE: usize = 0;
const RELEASE: usize = 1;
const ENTER: usize = 2;
const EXIT: usize = 3;

/// Puts these methods in front of the usual ones.
pub fn install(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    let class = py.get_type::<SemLock>();
    let method = |index: usize| class.getattr(NAMES[index]).map(Bound::unbind);
    let usual = [
        method(ACQUIRE)?,
        method(RELEASE)?,
        method(ENTER)?,
        method(EXIT)?,
    ];
    if USUAL.set(py, usual).is_err() {
        return Ok(()); // the module is imported again; the class is the same
    }
    let both = ffi::METH_FASTCALL | ffi::METH_KEYWORDS;
    let methods: [(&'static CStr, &'static CStr, ffi::PyMethodDefPointer, c_int); 4] = [
        (
            c"acquire",
            c"acquire($self, block=True, timeout=None)\n--\n\nAcquires it; False if it cannot be \
              had (within `timeout` seconds).",
            ffi::PyMethodDefPointer {
                PyCFunctionFastWithKeywords: acquire,
            },
            both,
        ),
        (
            c"release",
            c"release($self)\n--\n\nReleases it.",
            ffi::PyMethodDefPointer {
                PyCFunction: release,
            },
            ffi::METH_NOARGS,
        ),
        (
            c"__enter__",
            c"__enter__($self)\n--\n\nAcquires it.",
            ffi::PyMethodDefPointer { PyCFunction: enter },
            ffi::METH_NOARGS,
        ),
        (
            c"__exit__",
            c"__exit__($self, *args)\n--\n\nReleases it.",
            ffi::PyMethodDefPointer {
                PyCFunctionFast: exit,
            },
            ffi::METH_FASTCALL,
        ),
    ];
    for (name, doc, function, flags) in methods {
        // SAFETY: the flags are those of each function, which takes a lock.
        unsafe { direct::put_method(&class, (name, doc), function, flags)? };
    }
    Ok(())
}

/// The lock that a method was called on.
///
/// # Safety
/// The caller has the GIL and `slf` is a `SemLock`: method descriptors see to that.
#[inline]
unsafe fn lock(slf: &*mut ffi::PyObject) -> &SemLock {
    // SAFETY: as the caller says.
    unsafe {
        Bound::ref_from_ptr(Python::assume_attached(), slf)
            .cast_unchecked::<SemLock>()
            .get()
    }
}

/// A new reference to True.
fn new_true() -> *mut ffi::PyObject {
    // SAFETY: True is there for as long as the interpreter is; the caller has the GIL.
    unsafe { ffi::Py_NewRef(ffi::Py_True()) }
}

/// A new reference to None.
fn new_none() -> *mut ffi::PyObject {
    // SAFETY: as above.
    unsafe { ffi::Py_NewRef(ffi::Py_None()) }
}

/// Calls the usual method.
///
/// # Safety
/// As for [`lock`]; `args` has `count` values, and after them as many as `names` (a tuple, or
/// null) has.
#[cold]
unsafe fn usual(
    method: usize,
    slf: *mut ffi::PyObject,
    args: *const *mut ffi::PyObject,
    count: usize,
    names: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    // SAFETY: a live object, so many values, and a tuple or null, as the caller says.
    unsafe {
        direct::attach(|py| {
            let value = |index: usize| Bound::from_borrowed_ptr(py, *args.add(index));
            let call = || {
                let slf = Bound::from_borrowed_ptr(py, slf);
                let values = std::iter::once(slf).chain((0..count).map(value));
                let values = PyTuple::new(py, values.collect::<Vec<_>>())?;
                let keywords = PyDict::new(py);
                if let Some(names) = Bound::from_borrowed_ptr_or_opt(py, names) {
                    for (index, name) in names.try_iter()?.enumerate() {
                        keywords.set_item(name?, value(count + index))?;
                    }
                }
                let methods = USUAL.get(py).map(|methods| &methods[method]);
                let Some(method) = methods else {
                    return Err(pyo3::exceptions::PySystemError::new_err("not installed"));
                };
                method.bind(py).call(values, Some(&keywords))
            };
            call().map_or_else(|error| direct::raise(py, error), Bound::into_ptr)
        })
    }
}

unsafe extern "C" fn acquire(
    slf: *mut ffi::PyObject,
    args: *const *mut ffi::PyObject,
    count: ffi::Py_ssize_t,
    names: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    // SAFETY: called by the interpreter as this kind of method.
    unsafe {
        // Arguments that have to be checked are the usual method's.
        let block = if count == 0 { ffi::Py_True() } else { *args };
        let plain = block == ffi::Py_True() || block == ffi::Py_False();
        if names.is_null() && count <= 1 && plain {
            if lock(&slf).try_acquire() {
                return new_true();
            }
            if block == ffi::Py_False() && lock(&slf).is_semaphore() {
                return ffi::Py_NewRef(ffi::Py_False());
            }
        }
        usual(ACQUIRE, slf, args, count as usize, names)
    }
}

unsafe extern "C" fn enter(slf: *mut ffi::PyObject, _: *mut ffi::PyObject) -> *mut ffi::PyObject {
    // SAFETY: as above.
    unsafe {
        if lock(&slf).try_acquire() {
            return new_true();
        }
        usual(ENTER, slf, std::ptr::null(), 0, std::ptr::null_mut())
    }
}

unsafe extern "C" fn release(slf: *mut ffi::PyObject, _: *mut ffi::PyObject) -> *mut ffi::PyObject {
    // SAFETY: as above.
    unsafe {
        if lock(&slf).try_release() {
            return new_none();
        }
        usual(RELEASE, slf, std::ptr::null(), 0, std::ptr::null_mut())
    }
}

unsafe extern "C" fn exit(
    slf: *mut ffi::PyObject,
    _args: *mut *mut ffi::PyObject,
    _count: ffi::Py_ssize_t,
) -> *mut ffi::PyObject {
    // SAFETY: as above.
    unsafe {
        if lock(&slf).try_release() {
            return new_none();
        }
        usual(EXIT, slf, std::ptr::null(), 0, std::ptr::null_mut())
    }
}
