//! Semaphores and what is made of them: under `billiard/synchronize.py`.

use pyo3::prelude::*;

pub fn register(_module: &Bound<'_, PyModule>) -> PyResult<()> {
    Ok(())
}
