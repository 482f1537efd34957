//! Locks and what goes with them: under `billiard/synchronize.py`.
//!
//! What is shared are words in a block of the arena (`ipc`); the objects here are handles. Their
//! Python classes inherit from them, so that `with lock` runs no Python code of ours.

pub mod anylock;
mod barrier;
mod condition;
mod event;
mod fast;
pub mod semlock;

use pyo3::prelude::*;

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<semlock::SemLock>()?;
    fast::install(module)?;
    module.add_class::<condition::Condition>()?;
    module.add_class::<event::Event>()?;
    module.add_class::<barrier::Barrier>()?;
    module.add_function(wrap_pyfunction!(semlock::sem_unlink, module)?)
}
