//! Pools: under `billiard/_pool/native.py` and `supervision.py`.
//!
//! [`engine`] is the pool's side, [`result`] and [`sequence`] are what its callers hold, [`worker`] is
//! the other side, [`calls`] encodes and decodes for both, [`messages`] tells the threads of the layer
//! above, [`attempt`] is for locks of theirs.

mod attempt;
mod calls;
mod engine;
mod messages;
mod result;
mod sequence;
mod worker;

use pyo3::prelude::*;

pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<attempt::Attempt>()?;
    module.add_class::<engine::PoolEngine>()?;
    // To their users they have other names: those of the public classes that they stand for.
    let py = module.py();
    module.add("PoolResult", py.get_type::<result::PoolResult>())?;
    module.add("PoolSequence", py.get_type::<sequence::PoolSequence>())?;
    module.add_class::<worker::PoolLane>()?;
    module.add_function(wrap_pyfunction!(worker::resident_kib, module)?)?;
    module.add_function(wrap_pyfunction!(worker::soft_limit_passed, module)?)
}
