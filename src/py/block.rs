//! The one way to block.
//!
//! Callers try without blocking first, with the GIL held: most calls end there. Only what would
//! block comes here. The GIL is given back for the wait; a signal (EINTR) takes it again, runs the
//! Python handlers, which may raise, and goes on against the same absolute deadline.

use std::time::{Duration, Instant};

use nix::errno::Errno;
use pyo3::exceptions::{PyOverflowError, PyValueError};
use pyo3::prelude::*;

use super::error::os_error;

/// A point in time to give up at; `Never` waits for ever.
#[derive(Clone, Copy, Debug)]
pub enum Deadline {
    Never,
    At(Instant),
}

/// Longer waits are "for ever" to the kernel and to us (about 31 years).
const LONGEST: f64 = 1e9;
/// What Python calls `threading.TIMEOUT_MAX`: nanoseconds that fit into 63 bits.
const MOST: f64 = 9_223_372_036.0;

impl Deadline {
    /// From a Python timeout in seconds: `None` waits for ever, a negative one does not wait.
    pub fn after(timeout: Option<f64>) -> PyResult<Self> {
        match timeout {
            None => Ok(Self::Never),
            Some(seconds) if seconds.is_nan() => {
                Err(PyValueError::new_err("timeout must not be NaN"))
            }
            Some(seconds) if seconds > MOST && seconds.is_finite() => {
                Err(PyOverflowError::new_err("timeout value is too large"))
            }
            Some(seconds) if seconds > LONGEST => Ok(Self::Never),
            Some(seconds) => Ok(Self::At(
                Instant::now() + Duration::from_secs_f64(seconds.max(0.0)),
            )),
        }
    }

    /// What is left: `None` for ever, zero when it has passed.
    pub fn remaining(&self) -> Option<Duration> {
        match self {
            Self::Never => None,
            Self::At(at) => Some(at.saturating_duration_since(Instant::now())),
        }
    }

    /// Not before so much time from now.
    pub fn at_least(self, least: Duration) -> Self {
        match self {
            Self::Never => Self::Never,
            Self::At(at) => Self::At(at.max(Instant::now() + least)),
        }
    }

    pub fn passed(&self) -> bool {
        matches!(self, Self::At(at) if *at <= Instant::now())
    }
}

/// Runs `wait` without the GIL until it returns something other than `EINTR`.
///
/// `wait` gets the time that is left and must return `Err(EINTR)` when a signal woke it; it decides
/// by itself what a passed deadline means (its `Ok` value or `ETIMEDOUT`).
pub fn block_on<T, W>(py: Python<'_>, deadline: Deadline, mut wait: W) -> PyResult<T>
where
    T: Send,
    W: FnMut(Option<Duration>) -> nix::Result<T> + Send,
{
    loop {
        match py.detach(|| wait(deadline.remaining())) {
            Err(Errno::EINTR) => py.check_signals()?,
            other => return other.map_err(os_error),
        }
    }
}
