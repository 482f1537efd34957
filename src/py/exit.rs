//! The end of a process that was started by `spawn`: under `billiard/spawn.py`.

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyList;

/// Types that were looked at already; a power of two, more than most programs have alive.
const REMEMBERED: usize = 256;

/// Those of `objects` whose types have finalizers: what Python would call something of, if it took
/// the interpreter apart.
#[pyfunction]
#[allow(unsafe_code)]
fn with_finalizers<'py>(objects: &Bound<'py, PyList>) -> Vec<Bound<'py, PyAny>> {
    let mut plain = [std::ptr::null_mut(); REMEMBERED];
    let mut found = Vec::new();
    for i in 0..objects.len() as ffi::Py_ssize_t {
        // SAFETY: the list is alive, and has an object at every position below its length, because
        // nothing here runs Python code that could change it. The object is borrowed from it: a
        // count that is not touched does not make its page dirty.
        let object = unsafe { ffi::PyList_GetItem(objects.as_ptr(), i) };
        // SAFETY: as above; an object's type lives as long as the object.
        let of = unsafe { ffi::Py_TYPE(object) };
        let place = (of as usize >> 6) % REMEMBERED;
        if plain[place] == of {
            continue;
        }
        // SAFETY: `of` is a type; the slots are asked for and not called.
        let finalizer = unsafe {
            !ffi::PyType_GetSlot(of, ffi::Py_tp_finalize).is_null()
                || !ffi::PyType_GetSlot(of, ffi::Py_tp_del).is_null()
        };
        if finalizer {
            // SAFETY: a new reference to an object that the list keeps alive.
            found.push(unsafe { Bound::from_borrowed_ptr(objects.py(), object) });
        } else {
            plain[place] = of;
        }
    }
    found
}

/// Ends the process as a C program does: `exit(3)` with its handlers, no Python any more.
#[pyfunction]
fn exit(status: i32) {
    std::process::exit(status)
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(with_finalizers, module)?)?;
    module.add_function(wrap_pyfunction!(exit, module)?)
}
