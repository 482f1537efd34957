//! Starting, waiting for and signalling processes: under `billiard/process.py` and `popen_*.py`.

use pyo3::prelude::*;

pub fn register(_module: &Bound<'_, PyModule>) -> PyResult<()> {
    Ok(())
}
