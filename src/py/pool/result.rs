//! What `apply_async` returns for a call without callbacks and limits.

use std::sync::Arc;

use pyo3::exceptions::{PyAttributeError, PyValueError};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyList;

use super::calls;
use super::engine::PoolEngine;
use crate::pool::jobs::Cell;
use crate::py::block::Deadline;
use crate::sys::fork::Kept;
use crate::sys::mutex::Mutex;

/// The result of :meth:`Pool.apply_async`. Made by the pool; a `billiard.pool.ApplyResult`.
///
/// Process-local; in a forked child its methods raise RuntimeError until it is done. Whoever asks
/// reads what workers have reported, and decodes the outcome in its own thread, once.
#[pyclass(frozen, weakref, name = "ApplyResult", module = "billiard.pool")]
pub struct PoolResult {
    engine: Py<PoolEngine>,
    cell: Kept<Arc<Cell>>,
    /// The mutex is held for an instant and with the GIL.
    decoded: Mutex<Decoded>,
    /// Its number, once somebody has asked.
    job: calls::JobNumber,
}

/// The outcome: whether it is a value, and the value or an ExceptionInfo; nothing before it has been
/// decoded. All zeros is nothing, too, which is what the garbage collector sees of a result that is
/// just being made.
#[derive(Default)]
struct Decoded {
    success: bool,
    value: Option<Py<PyAny>>,
}

impl PoolResult {
    pub(super) fn new(engine: Py<PoolEngine>, cell: Arc<Cell>) -> Self {
        Self {
            engine,
            cell: Kept::new(cell),
            decoded: Mutex::default(),
            job: calls::JobNumber::default(),
        }
    }

    /// Another result of a task that its caller has a result of; equal to that.
    pub(super) fn failed(engine: Py<PoolEngine>, cell: Arc<Cell>, info: &Bound<'_, PyAny>) -> Self {
        let result = Self::new(engine, cell);
        result.keep(false, info);
        result
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

    /// The outcome if it has been decoded.
    fn decoded<'py>(&self, py: Python<'py>) -> Option<(bool, Bound<'py, PyAny>)> {
        let decoded = self.decoded.lock();
        let value = decoded.value.as_ref()?;
        Some((decoded.success, value.bind(py).clone()))
    }

    fn is_decoded(&self) -> bool {
        self.decoded.lock().value.is_some()
    }

    fn keep(&self, success: bool, value: &Bound<'_, PyAny>) {
        let value = Some(value.clone().unbind());
        let before = std::mem::replace(&mut *self.decoded.lock(), Decoded { success, value });
        drop(before);
    }

    /// The outcome, which must be there.
    fn outcome<'py>(&self, py: Python<'py>) -> PyResult<(bool, Bound<'py, PyAny>)> {
        loop {
            if let Some(outcome) = self.decoded(py) {
                return Ok(outcome);
            }
            if let Some(sent) = self.cell()?.take() {
                let wire = self.engine.get().wire(py);
                return match calls::decode_outcome(wire, sent) {
                    Ok((success, value)) => {
                        self.keep(success, &value);
                        Ok((success, value))
                    }
                    Err(given_up) => {
                        let (error, sent) = *given_up;
                        self.cell()?.put_back(sent);
                        Err(error)
                    }
                };
            }
            // Another thread is decoding it: it will not be long.
            py.detach(|| std::thread::sleep(std::time::Duration::from_millis(1)));
            py.check_signals()?;
        }
    }

    fn wait_for(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        if self.is_decoded() {
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

    /// The outcome, for an attribute that there is not before.
    fn known<'py>(&self, py: Python<'py>, name: &str) -> PyResult<(bool, Bound<'py, PyAny>)> {
        if self.ready()? {
            self.outcome(py)
        } else {
            let text = format!("'ApplyResult' object has no attribute '{name}'");
            Err(PyAttributeError::new_err(text))
        }
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
        match self.decoded.try_lock() {
            Some(decoded) => decoded
                .value
                .as_ref()
                .map_or(Ok(()), |value| visit.call(value)),
            None => Ok(()),
        }
    }

    /// Results of the same task are equal; `Pool.drain` makes new ones.
    fn __eq__(&self, other: &Self) -> bool {
        Arc::as_ptr(self.cell.foreign()) == Arc::as_ptr(other.cell.foreign())
    }

    fn __hash__(&self) -> usize {
        Arc::as_ptr(self.cell.foreign()) as usize
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
        Ok(self.is_decoded() || self.look()?)
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
    /// :returns: false if it was too late for that: it is done, or its outcome is on the way.
    ///     Otherwise the outcome is Terminated.
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
            self.keep(success, &value);
        }
        drop(cell.set(calls::local(&value)));
        engine.hub()?.announce_outcomes();
        Ok(())
    }

    #[getter(_job)]
    fn job(&self, py: Python<'_>) -> PyResult<i64> {
        self.job.get(self.engine.get().wire(py))
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
    fn success(&self, py: Python<'_>) -> PyResult<bool> {
        self.known(py, "_success").map(|(success, _)| success)
    }

    #[getter(_value)]
    fn value<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.known(py, "_value").map(|(_, value)| value)
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
