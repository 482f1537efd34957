//! The parent-death signal: under `billiard/util.py`.

use pyo3::prelude::*;

use super::error::os_error;
use crate::sys::prctl;

/// get_pdeathsig() -> the signal this process gets when its parent dies, 0 for none.
#[pyfunction]
fn get_pdeathsig() -> PyResult<i32> {
    prctl::get_pdeathsig().map_err(os_error)
}

/// set_pdeathsig(sig): have `sig` sent to this process when its parent dies.
#[pyfunction]
fn set_pdeathsig(sig: i32) -> PyResult<()> {
    prctl::set_pdeathsig(sig).map_err(os_error)
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(get_pdeathsig, module)?)?;
    module.add_function(wrap_pyfunction!(set_pdeathsig, module)?)
}
