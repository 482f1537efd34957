//! What `apply_async` returns for a call without callbacks and limits.

use std::sync::Arc;

use parking_lot::Mutex;
use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyList;
use pyo3::{PyTraverseError, PyVisit};

use super::calls;
use super::engine::PoolEngine;
use crate::pool::jobs::Cell;
use crate::pool::message::Outcome;
use crate::py::block::Deadline;
use crate::sys::fork::Kept;

/// The result of :meth:`Pool.apply_async`. Made by the pool; a `billiard.pool.ApplyResult`.
///
/// Process-local; in a forked child its methods raise RuntimeError until it is done. Whoever asks
/// reads what workers have reported, and decodes the outcome in its own thread, once.
#[pyclass(frozen, weakref, name = "ApplyResult", module = "billiard.pool")]
pub struct PoolResult {
    engine: Py<PoolEngine>,
    cell: Kept<Arc<Cell>>,
    /// The outcome, decoded: whether it is a value, and the value or an ExceptionInfo. The mutex is
    /// held for an instant and with the GIL.
    outcome: Mutex<Option<(bool, Py<PyAny>)>>,
    /// Its number, once somebody has asked.
    job: Mutex<Option<i64>>,
}

/// What another thread has made of an outcome that it has taken out.
enum Elsewhere<'py> {
    Decoded(bool, Bound<'py, PyAny>),
    /// Nothing: a signal's handler has raised.
    GivenUp(Outcome),
}

impl PoolResult {
    pub(super) fn new(engine: Py<PoolEngine>, cell: Arc<Cell>) -> Self {
        Self {
            engine,
            cell: Kept::new(cell),
            outcome: Mutex::new(None),
            job: Mutex::new(None),
        }
    }

    fn cell(&self) -> PyResult<&Arc<Cell>> {
        self.engine.get().hub()?;
        Ok(self.cell.get().expect("ours, as the engine is"))
    }

    /// Whether there is an outcome; looks what workers have reported.
    fn look(&self) -> PyResult<bool> {
        let engine = self.engine.get();
        let cell = self.cell()?;
        if !cell.is_done() {
            engine.hub()?.drain();
            engine.let_go();
        }
        Ok(cell.is_done())
    }

    /// The outcome, which must be there.
    fn outcome<'py>(&self, py: Python<'py>) -> PyResult<(bool, Bound<'py, PyAny>)> {
        if let Some((success, value)) = &*self.outcome.lock() {
            return Ok((*success, value.bind(py).clone()));
        }
        let cell = self.cell()?;
        let sent = match cell.take() {
            Some(sent) => sent,
            // Another thread is decoding it: it will not be long.
            None => match self.decoded_elsewhere(py)? {
                Elsewhere::Decoded(success, value) => return Ok((success, value)),
                Elsewhere::GivenUp(sent) => sent,
            },
        };
        let decoded = calls::decode_outcome(self.engine.get().wire(py), sent);
        let (success, value) = decoded.map_err(|given_up| {
            let (error, sent) = *given_up;
            cell.put_back(sent);
            error
        })?;
        *self.outcome.lock() = Some((success, value.clone().unbind()));
        Ok((success, value))
    }

    fn decoded_elsewhere<'py>(&self, py: Python<'py>) -> PyResult<Elsewhere<'py>> {
        loop {
            if let Some((success, value)) = &*self.outcome.lock() {
                return Ok(Elsewhere::Decoded(*success, value.bind(py).clone()));
            }
            if let Some(sent) = self.cell()?.take() {
                return Ok(Elsewhere::GivenUp(sent));
            }
            py.detach(|| std::thread::sleep(std::time::Duration::from_millis(1)));
            py.check_signals()?;
        }
    }

    fn wait_for(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        if self.outcome.lock().is_some() {
            return Ok(true);
        }
        let cell = self.cell()?;
        if cell.is_done() || self.look()? {
            return Ok(true);
        }
        let deadline = Deadline::after(timeout)?;
        self.engine
            .get()
            .wait_until(py, deadline, &|| cell.is_done())
    }

    /// The task's number, 0 if it never was one.
    fn task(&self) -> PyResult<u64> {
        Ok(self.cell()?.task())
    }

    /// The pid of the worker that is at it.
    fn runner(&self) -> PyResult<Option<i32>> {
        let task = self.task()?;
        let state = self.engine.get().hub()?.state();
        Ok(state.runner(task).map(|worker| worker.pid))
    }
}

#[pymethods]
impl PoolResult {
    /// An outcome that was raised knows the frame that asked, and that its result. What breaks such
    /// a circle is the frame: a result that is cleared would have its caller wait for ever.
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        if let Some(outcome) = self.outcome.try_lock()
            && let Some((_, value)) = &*outcome
        {
            visit.call(value)?;
        }
        // One that others know, too, would be counted more often than it is referred to.
        if let Some(cell) = self.cell.get()
            && Arc::strong_count(cell) == 1
            && let Some(local) = cell.local()
            && let Some(info) = local.downcast_ref::<Py<PyAny>>()
        {
            visit.call(info)?;
        }
        Ok(())
    }

    /// Wait for the outcome: return the value or raise the task's exception.
    ///
    /// :param timeout: seconds to wait at most.
    /// :raises TimeoutError: still no outcome.
    #[pyo3(signature = (timeout=None))]
    fn get<'py>(&self, py: Python<'py>, timeout: Option<f64>) -> PyResult<Bound<'py, PyAny>> {
        if !self.wait_for(py, timeout)? {
            let wire = self.engine.get().wire(py);
            let error = wire.call_method0(intern!(py, "timeout_error"))?;
            return Err(PyErr::from_value(error));
        }
        let (success, value) = self.outcome(py)?;
        if success {
            return Ok(value);
        }
        let wire = self.engine.get().wire(py);
        let error = wire.call_method1(intern!(py, "task_error"), (value,))?;
        Err(PyErr::from_value(error))
    }

    /// Wait for the outcome, at most ``timeout`` seconds.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<()> {
        self.wait_for(py, timeout).map(drop)
    }

    /// Whether there is an outcome.
    fn ready(&self) -> PyResult<bool> {
        Ok(self.outcome.lock().is_some() || self.look()?)
    }

    /// Whether the outcome is a value.
    ///
    /// :raises ValueError: there is no outcome yet.
    fn successful(slf: &Bound<'_, Self>) -> PyResult<bool> {
        let (this, py) = (slf.get(), slf.py());
        if !this.ready()? {
            let text = format!("{} not ready", this.__repr__(py)?);
            return Err(PyValueError::new_err(text));
        }
        Ok(this.outcome(py)?.0)
    }

    /// Whether a worker has begun with it.
    fn accepted(&self) -> PyResult<bool> {
        Ok(self.ready()? || self.runner()?.is_some())
    }

    /// End the task: if no worker has begun with it, none will; the worker that has is ended.
    ///
    /// :returns: false if it was too late for that. Otherwise the outcome is Terminated.
    fn cancel(&self, py: Python<'_>) -> PyResult<bool> {
        if self.look()? {
            return Ok(false);
        }
        let engine = self.engine.get();
        let info = engine.wire(py).call_method0(intern!(py, "cancelled"))?;
        engine.cancel_task(self.task()?, &info)
    }

    /// The pids of the workers that have accepted it.
    fn worker_pids(&self) -> PyResult<Vec<i32>> {
        Ok(self.runner()?.into_iter().collect())
    }

    /// Forget the job: whatever its outcome, nobody is told.
    fn discard(&self) {}

    /// Set the outcome, unless there is one: `(success, value or ExceptionInfo)`.
    #[pyo3(name = "_set")]
    fn set(&self, i: &Bound<'_, PyAny>, outcome: (bool, Bound<'_, PyAny>)) -> PyResult<()> {
        let _ = i;
        let engine = self.engine.get();
        let cell = self.cell()?;
        let task = engine.hub()?.state().remove(cell.task());
        drop(task);
        let (success, value) = outcome;
        if !cell.is_done() && success {
            *self.outcome.lock() = Some((success, value.clone().unbind()));
        }
        drop(cell.set(calls::local(&value)));
        engine.hub()?.announce_outcomes();
        Ok(())
    }

    #[getter(_job)]
    fn job(&self, py: Python<'_>) -> PyResult<i64> {
        if let Some(job) = *self.job.lock() {
            return Ok(job);
        }
        let wire = self.engine.get().wire(py);
        let job = wire.call_method0(intern!(py, "new_job"))?.extract()?;
        Ok(*self.job.lock().get_or_insert(job))
    }

    /// The pool, as long as there is no outcome.
    #[getter(_pool)]
    fn pool(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        Ok(if self.ready()? {
            None
        } else {
            self.engine.get().kept(py)
        })
    }

    #[getter(_success)]
    fn success(slf: &Bound<'_, Self>) -> PyResult<bool> {
        Self::successful(slf)
    }

    #[getter(_value)]
    fn value<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        if self.ready()? {
            Ok(Some(self.outcome(py)?.1))
        } else {
            Ok(None)
        }
    }

    #[getter(_accepted)]
    fn is_accepted(&self) -> PyResult<bool> {
        self.accepted()
    }

    #[getter(_worker_pid)]
    fn worker_pid(&self) -> PyResult<Option<i32>> {
        self.runner()
    }

    #[getter]
    fn correlation_id(&self) -> Option<i32> {
        None
    }

    #[getter(_cache)]
    fn cache<'py>(&self, py: Python<'py>) -> Bound<'py, PyAny> {
        PyList::empty(py).into_any()
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let name = |flag: bool| if flag { "True" } else { "False" };
        let (job, ack, ready) = (self.job(py)?, self.accepted()?, self.ready()?);
        Ok(format!(
            "<ApplyResult: {job} ack:{} ready:{}>",
            name(ack),
            name(ready)
        ))
    }
}
