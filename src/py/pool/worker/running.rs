//! The task that runs in this process.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pyo3::exceptions::{PyKeyboardInterrupt, PySystemExit};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::pool::station::Station;
use crate::py::pool::calls::Work;
use crate::sys::fork;
use crate::sys::mutex::Mutex;

/// The task whose function runs in this process, 0 if none does. Process-local.
pub(super) static RUNNING: AtomicU64 = AtomicU64::new(0);
/// The station of this process, if it is a worker. One that a worker has forked, for a pool of its
/// own, inherits that worker's. The mutex is held for an instant and with the GIL.
pub(super) static STATION: Mutex<Option<(u32, Arc<Station>)>> = Mutex::new(None);

/// Whether the soft limit of the task that runs here has passed. For the signal's handler: a signal
/// that comes late must not hit the next task.
#[pyfunction]
pub fn soft_limit_passed() -> bool {
    let running = RUNNING.load(Ordering::SeqCst);
    match &*STATION.lock() {
        Some((pid, station)) if *pid == fork::pid() => running != 0 && station.soft() == running,
        _ => false,
    }
}

/// Runs tasks; its arguments are the hooks of `billiard.pool.Worker`.
pub(super) struct Serving<'py> {
    pub(super) wire: Bound<'py, PyAny>,
    pub(super) prepare: Option<Bound<'py, PyAny>>,
    pub(super) fired: Bound<'py, PyList>,
    /// This process: a child that a task forks is no worker.
    pub(super) pid: u32,
}

impl<'py> Serving<'py> {
    /// Whether the handler of the terminating signals has run: then this process is to exit,
    /// whatever a task has made of the exception.
    pub(super) fn is_leaving(&self) -> PyResult<bool> {
        self.fired.get_item(0)?.is_truthy()
    }

    fn call(&self, work: &Work<'py>) -> PyResult<Bound<'py, PyAny>> {
        if soft_limit_passed() {
            // While the task was decoded, when the signal's handler had nothing to do yet.
            let error = self
                .wire
                .call_method0(intern!(self.wire.py(), "soft_limit"))?;
            return Err(PyErr::from_value(error));
        }
        let value = work.call()?;
        match &self.prepare {
            Some(prepare) => prepare.call1((value,)),
            None => Ok(value),
        }
    }

    /// Calls a task: its outcome, and the exception that ends the worker, if it does.
    pub(super) fn run(
        &self,
        task: u64,
        work: PyResult<Work<'py>>,
    ) -> PyResult<(bool, Bound<'py, PyAny>, Option<PyErr>)> {
        let py = self.wire.py();
        if self.is_leaving()? {
            // The exception was swallowed while this task was decoded (that can be any import).
            return Err(PySystemExit::new_err((1,)));
        }
        let called = work.and_then(|work| {
            RUNNING.store(task, Ordering::SeqCst);
            let result = self.call(&work);
            RUNNING.store(0, Ordering::SeqCst);
            result
        });
        if fork::pid() != self.pid {
            let error = called.err().map(|error| error.into_value(py));
            self.wire.call_method1(intern!(py, "end_stray"), (error,))?;
            unreachable!("it ends the process");
        }
        match called {
            Ok(value) => Ok((true, value, None)),
            Err(error) => {
                if self.is_leaving()? {
                    return Err(error);
                }
                let ends = error.is_instance_of::<PySystemExit>(py)
                    || error.is_instance_of::<PyKeyboardInterrupt>(py);
                let info = self.wire.call_method1(
                    intern!(py, "failure"),
                    (error.clone_ref(py).into_value(py),),
                )?;
                Ok((false, info, ends.then_some(error)))
            }
        }
    }
}
