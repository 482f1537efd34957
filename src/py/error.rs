//! Errors of the core as Python exceptions.
//!
//! PyO3's own conversion of `io::Error` builds the exception from text alone, so that `exc.errno`
//! is `None`; Celery and the standard library branch on `errno`. Here `OSError(errno, strerror)`
//! is built, and Python picks the subclass (`BlockingIOError`, `BrokenPipeError`, ...).

use nix::errno::Errno;
use pyo3::PyErr;
use pyo3::exceptions::PyOSError;

use crate::sys::errno::strerror;

/// `OSError(errno, strerror(errno))`.
pub fn os_error(errno: Errno) -> PyErr {
    PyOSError::new_err((errno as i32, strerror(errno)))
}

/// `OSError(errno, strerror(errno), filename)`.
pub fn os_error_with_filename(errno: Errno, filename: &str) -> PyErr {
    PyOSError::new_err((errno as i32, strerror(errno), filename.to_owned()))
}
