//! Methods and properties that the interpreter calls without the bookkeeping of PyO3 on the way in,
//! which costs as much again as what the quickest of them do.
//!
//! While one runs, PyO3 does not know that it is attached: what may drop a `Py` or raises an error
//! goes through [`attach`].
#![allow(unsafe_code)]

use std::ffi::{CStr, c_int, c_void};

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyType;

/// Puts a method into `class`.
///
/// # Safety
/// `function` is of the kind that `flags` say, and takes an object of `class`.
pub unsafe fn put_method(
    class: &Bound<'_, PyType>,
    (name, doc): (&'static CStr, &'static CStr),
    function: ffi::PyMethodDefPointer,
    flags: c_int,
) -> PyResult<()> {
    let definition = Box::leak(Box::new(ffi::PyMethodDef {
        ml_name: name.as_ptr(),
        ml_meth: function,
        ml_flags: flags,
        ml_doc: doc.as_ptr(),
    }));
    // SAFETY: the definition lives for ever, and names what the caller says.
    let method = unsafe {
        let descriptor = ffi::PyDescr_NewMethod(class.as_type_ptr(), definition);
        Bound::from_owned_ptr_or_err(class.py(), descriptor)?
    };
    class.setattr(&*name.to_string_lossy(), method)
}

/// A property of objects of `class`, whose functions get `closure`.
///
/// # Safety
/// The functions take an object of `class` and `closure`, at any time.
pub unsafe fn property<'py>(
    class: &Bound<'py, PyType>,
    name: &'static CStr,
    (get, set): (ffi::getter, ffi::setter),
    closure: *mut c_void,
) -> PyResult<Bound<'py, PyAny>> {
    let definition = Box::leak(Box::new(ffi::PyGetSetDef {
        name: name.as_ptr(),
        get: Some(get),
        set: Some(set),
        doc: std::ptr::null(),
        closure,
    }));
    // SAFETY: as above.
    unsafe {
        let descriptor = ffi::PyDescr_NewGetSet(class.as_type_ptr(), definition);
        Bound::from_owned_ptr_or_err(class.py(), descriptor)
    }
}

/// Has PyO3 know that such a function is attached.
///
/// `Python::attach` refuses while the interpreter ends, when `__del__` methods of the program still
/// run: what is dropped then is gone with the process.
///
/// # Safety
/// The interpreter has called the function, and it has not returned.
pub unsafe fn attach<R>(function: impl FnOnce(Python<'_>) -> R) -> R {
    let mut result = None;
    let mut function = Some(function);
    let mut call = |py: Python<'_>| result = function.take().map(|function| function(py));
    if Python::try_attach(&mut call).is_none() {
        // SAFETY: as the caller says.
        call(unsafe { Python::assume_attached() });
    }
    result.expect("it has been called once")
}

/// What such a function returns for an error, which the interpreter raises.
pub fn raise(py: Python<'_>, error: PyErr) -> *mut ffi::PyObject {
    error.restore(py);
    std::ptr::null_mut()
}
