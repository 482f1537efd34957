//! The extension module `billiard._core`.
//!
//! One file per Python module that it serves: `synchronize.rs` is under `billiard/synchronize.py`.
//! Nothing here imports `billiard`, exceptions aside, and nothing holds a lock that `fork` could
//! copy while it is held.

pub mod block;
pub mod buffer;
pub mod error;
pub mod late;

mod codec;
mod connection;
mod direct;
mod exit;
mod fork;
mod forkserver;
mod framing;
mod heap;
mod lent;
mod make;
mod payload;
mod pool;
mod process;
mod queues;
mod shared_memory;
mod sharedctypes;
mod synchronize;
mod util;

use pyo3::prelude::*;

#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    codec::register(module)?;
    connection::register(module)?;
    exit::register(module)?;
    forkserver::register(module)?;
    heap::register(module)?;
    payload::register(module)?;
    pool::register(module)?;
    process::register(module)?;
    fork::register(module)?;
    queues::register(module)?;
    shared_memory::register(module)?;
    sharedctypes::register(module)?;
    synchronize::register(module)?;
    util::register(module)?;
    // PyO3 collects the names; nobody imports `*` from here, and the stub has no use for a copy.
    module.delattr("__all__")
}
