//! Locks and what goes with them: under `billiard/synchronize.py`.
//!
//! What is shared are words in a block of the arena (`ipc`); the objects here are handles. Their
//! Python classes inherit from them, so that `with lock` runs no Python code of ours.

pub mod anylock;
mod barrier;
mod condition;
mod event;
mod fast;
mod lock;
pub mod semlock;

use std::time::Duration;

use pyo3::prelude::*;

use crate::ipc::spin::Spinner;
use crate::py::block::{Deadline, block_on};

/// Waits without the GIL for what `look` finds: looks on where that has paid lately, for `longest`
/// at most, then sleeps. `elsewhere` says whether what is waited for can happen meanwhile, on
/// another processor.
fn wait_for<T: Send>(
    py: Python<'_>,
    deadline: Deadline,
    (spinner, longest): (&Spinner, Duration),
    elsewhere: impl Fn() -> bool + Send + Sync,
    mut look: impl FnMut() -> Option<T> + Send,
    mut sleep: impl FnMut(Option<Duration>) -> nix::Result<T> + Send,
) -> PyResult<T> {
    block_on(py, deadline, |left| {
        let at_once = left.is_some_and(|left| left.is_zero());
        let found = if at_once {
            None
        } else {
            spinner.spin(longest, &elsewhere, &mut look)
        };
        found.map_or_else(|| sleep(left), Ok)
    })
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<semlock::SemLock>()?;
    fast::install(module)?;
    module.add_class::<condition::Condition>()?;
    module.add_class::<event::Event>()?;
    module.add_class::<barrier::Barrier>()?;
    module.add_function(wrap_pyfunction!(semlock::new_lock, module)?)?;
    module.add_function(wrap_pyfunction!(semlock::new_rlock, module)?)?;
    module.add_function(wrap_pyfunction!(semlock::sem_unlink, module)?)
}
