//! Objects of a Python class, made without a call of its `__init__`.
#![allow(unsafe_code)]

use std::ptr;

use pyo3::exceptions::PyTypeError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyTuple, PyType};
use pyo3::{PyClass, PyTypeInfo};

/// An object of `class`, which inherits from `T`, as `class.__new__(class, *args)` makes it.
pub fn bare<'py, T: PyClass + PyTypeInfo>(
    class: &Bound<'py, PyType>,
    args: &Bound<'py, PyTuple>,
) -> PyResult<Bound<'py, T>> {
    let (py, type_) = (class.py(), class.as_type_ptr());
    // SAFETY: the slot of a live type; what is in it is a `newfunc`, and gets what one takes.
    let object = unsafe {
        let slot = ffi::PyType_GetSlot(type_, ffi::Py_tp_new);
        if slot.is_null() {
            return Err(PyTypeError::new_err("cannot make objects of this class"));
        }
        let new: ffi::newfunc = std::mem::transmute(slot);
        let object = new(type_, args.as_ptr(), ptr::null_mut());
        Bound::from_owned_ptr_or_err(py, object)?
    };
    Ok(object.cast_into::<T>()?)
}
