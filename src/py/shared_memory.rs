//! Segments with a name: under `billiard/shared_memory.py` and `resource_tracker.py`.

use std::os::fd::IntoRawFd;

use nix::errno::Errno;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::block::{Deadline, block_on};
use super::error::{os_error, os_error_with_filename};
use crate::sys::shm;

/// Python's answer to a name that C cannot have.
fn checked(name: &str) -> PyResult<&str> {
    if name.contains('\0') {
        return Err(PyValueError::new_err("embedded null character"));
    }
    Ok(name)
}

/// shm_open(name, flags, mode) -> a descriptor of the segment of that name.
#[pyfunction]
fn shm_open(name: &str, flags: i32, mode: u32) -> PyResult<i32> {
    let opened = shm::open(checked(name)?, flags, mode);
    let fd = opened.map_err(|errno| os_error_with_filename(errno, name))?;
    Ok(fd.into_raw_fd())
}

/// shm_allocate(fd, size): give a new segment `size` bytes.
#[pyfunction]
fn shm_allocate(py: Python<'_>, fd: i32, size: u64) -> PyResult<()> {
    let bytes = i64::try_from(size).map_err(|_| os_error(Errno::EFBIG))?;
    // Large ones take their time: the pages are cleared.
    block_on(py, Deadline::Never, |_| shm::allocate(fd, bytes))
}

/// shm_unlink(name): remove the name of a segment.
#[pyfunction]
fn shm_unlink(name: &str) -> PyResult<()> {
    shm::unlink(checked(name)?).map_err(|errno| os_error_with_filename(errno, name))
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(shm_allocate, module)?)?;
    module.add_function(wrap_pyfunction!(shm_open, module)?)?;
    module.add_function(wrap_pyfunction!(shm_unlink, module)?)
}
