//! Framed send and receive, descriptor passing, waiting: under `billiard/connection.py` and `reduction.py`.

use pyo3::prelude::*;

pub fn register(_module: &Bound<'_, PyModule>) -> PyResult<()> {
    Ok(())
}
