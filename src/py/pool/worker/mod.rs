//! The worker's side.
//!
//! [`tasks`] come in, [`running`] calls them, and [`reports`] go out.

mod reports;
mod running;
mod tasks;

use std::os::fd::RawFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use pyo3::exceptions::{PyException, PyRuntimeError, PySystemExit, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};

use self::running::{RUNNING, STATION, Serving};
use super::calls::{Known, Work};
use crate::pool::hub::Hub;
use crate::pool::message::record;
use crate::pool::shared::{Common, Lane, WORKERS};
use crate::pool::station::Station;
use crate::py::codec;
use crate::py::error::os_error;
use crate::sys::fork;
use crate::sys::mutex::Mutex;

pub(super) use running::soft_limit_passed;

/// The physical memory that this process has at the moment, in KiB; 0 if that is not known.
#[pyfunction]
pub(super) fn resident_kib() -> u64 {
    crate::sys::reactor::resident_bytes().unwrap_or(0) / 1024
}

/// The shared memory of a worker, and through it the pool's: made in the pool's process, served in
/// the worker's.
///
/// Shared by both processes, and useless in any other. A forked worker inherits it, others get it by
/// three descriptors ([`fds`](PoolLane::fds), [`open`](PoolLane::open)).
#[pyclass(frozen, module = "billiard._core")]
pub struct PoolLane {
    index: u16,
    common: Common,
    lane: Lane,
    kick: RawFd,
    known: Mutex<Known>,
    /// The worker's side, once it is there.
    station: OnceLock<Arc<Station>>,
}

impl PoolLane {
    pub(super) fn create(hub: &Hub, index: usize) -> PyResult<Self> {
        if index >= WORKERS {
            let text = format!("a pool has at most {WORKERS} workers");
            return Err(PyRuntimeError::new_err(text));
        }
        hub.common.make_bed(index);
        Ok(Self {
            index: index as u16,
            common: hub.common.clone(),
            lane: Lane::create().map_err(os_error)?,
            kick: hub.kick_fd(),
            known: Mutex::default(),
            station: OnceLock::new(),
        })
    }

    pub(super) fn index(&self) -> u16 {
        self.index
    }

    pub(super) fn lane(&self) -> Lane {
        self.lane.clone()
    }

    fn station(&self) -> &Arc<Station> {
        self.station.get_or_init(|| {
            let (common, lane) = (self.common.clone(), self.lane.clone());
            let station = Arc::new(Station::new(common, lane, self.index, self.kick));
            let before = STATION.lock().replace((fork::pid(), station.clone()));
            // It is of another process: nothing of it is given back here.
            std::mem::forget(before);
            station
        })
    }
}

#[pymethods]
impl PoolLane {
    /// The lane of a worker that was not forked, from copies of the descriptors that `fds` gave. It
    /// owns them.
    #[staticmethod]
    fn open(index: u16, common: RawFd, lane: RawFd, kick: RawFd) -> PyResult<Self> {
        let own = |fd| crate::sys::memory::take_over(fd).map_err(os_error);
        Ok(Self {
            index,
            common: Common::open(own(common)?).map_err(os_error)?,
            lane: Lane::open(own(lane)?).map_err(os_error)?,
            kick,
            known: Mutex::default(),
            station: OnceLock::new(),
        })
    }

    /// The number of the worker.
    #[getter(index)]
    fn py_index(&self) -> u16 {
        self.index
    }

    /// What another process needs to open it: index and descriptors.
    fn fds(&self) -> (u16, RawFd, RawFd, RawFd) {
        let (common, lane) = (self.common.segment().raw_fd(), self.lane.segment().raw_fd());
        (self.index, common, lane, self.kick)
    }

    /// Forks get it: what comes next is the fork of the worker itself.
    pub(super) fn admit(&self) {
        self.lane.segment().admit();
    }

    /// Forks do not get it any more.
    pub(super) fn withhold(&self) {
        self.lane.segment().withhold();
    }

    /// How many outcomes the worker has reported.
    #[getter]
    fn done(&self) -> u64 {
        self.lane.done().load(Ordering::Relaxed)
    }

    /// Closes the descriptor of the worker's memory: in a forked child that is not the worker.
    fn close(&self) {
        self.lane.segment().close();
    }

    /// In the worker: it is ready for tasks.
    fn announce(&self) {
        self.lane.up().store(1, Ordering::Release);
        self.common.ready().fetch_add(1, Ordering::Release);
    }

    /// Whether the worker has become ready.
    #[getter]
    fn is_up(&self) -> bool {
        self.lane.up().load(Ordering::Acquire) != 0
    }

    /// Sends a message that belongs to no task. ValueError if it is too long for the ring.
    ///
    /// :param notice: whether it is about the worker, for who looks after the workers.
    fn send(
        &self,
        wire: Bound<'_, PyAny>,
        message: Bound<'_, PyAny>,
        notice: bool,
    ) -> PyResult<()> {
        let kind = if notice {
            record::NOTICE
        } else {
            record::OTHER
        };
        let send = |bytes: &[u8]| {
            if Station::fits(bytes.len()) {
                return self.report(wire.py(), kind, &[bytes]);
            }
            Err(PyValueError::new_err("a message of the worker is too long"))
        };
        let mut plain = Vec::new();
        if codec::encode(&message, &mut plain) {
            return send(&plain);
        }
        let pickled = wire.call_method1(intern!(wire.py(), "dumps"), (message,))?;
        send(pickled.cast::<PyBytes>()?.as_bytes())
    }

    /// Runs tasks until there is a reason to stop. Returns how many, and whether it is the memory.
    ///
    /// :param wire: the module with the pickling. :param prepare: called with what a task returned.
    /// :param maxtasks: how many tasks at most, 0 for any number.
    /// :param is_above: whether this process has too much memory, asked after every task.
    /// :param shall_exit: asked before every task. :param fired: a list whose first item becomes
    ///     true when this process is exiting.
    #[allow(clippy::too_many_arguments)]
    fn serve<'py>(
        &self,
        py: Python<'py>,
        wire: Bound<'py, PyAny>,
        prepare: Option<Bound<'py, PyAny>>,
        maxtasks: u64,
        is_above: Option<Bound<'py, PyAny>>,
        shall_exit: Option<Bound<'py, PyAny>>,
        fired: Bound<'py, PyList>,
    ) -> PyResult<(u64, bool)> {
        let serving = Serving {
            wire,
            prepare,
            fired,
            pid: fork::pid(),
        };
        let mut completed = 0;
        loop {
            if maxtasks > 0 && completed >= maxtasks {
                self.station().pass_on();
                return Ok((completed, false));
            }
            if serving.is_leaving()? {
                // The exception was swallowed by the last task.
                return Err(PySystemExit::new_err((1,)));
            }
            if let Some(shall_exit) = &shall_exit
                && shall_exit.call0()?.is_truthy()?
            {
                self.station().pass_on();
                return Ok((completed, false));
            }
            let Some(position) = self.claim(py)? else {
                return Ok((completed, false));
            };
            let (head, work) = self.accept(&serving.wire, position);
            let (success, value, ending) = serving.run(head.task, work)?;
            match self.finish(&serving.wire, head.task, success, &value) {
                Ok(()) => {}
                Err(error) if error.is_instance_of::<PyException>(py) => {
                    let wire = &serving.wire;
                    let args = (error.into_value(py), &value);
                    let info = wire.call_method1(intern!(py, "unsent"), args)?;
                    self.finish(wire, head.task, false, &info)?;
                }
                Err(error) => return Err(error),
            }
            // Nothing of the task may live on while the worker waits for the next one.
            drop(value);
            completed += 1;
            if let Some(ending) = ending {
                return Err(ending);
            }
            if let Some(is_above) = &is_above
                && is_above.call0()?.is_truthy()?
            {
                self.station().pass_on();
                return Ok((completed, true));
            }
        }
    }

    /// Waits for a task and accepts it, for worker loops in Python: `(number, function, arguments,
    /// keyword arguments)`, None when there will be no more. What cannot be decoded is raised when
    /// the function is called.
    fn get<'py>(&self, wire: Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let py = wire.py();
        let Some(position) = self.claim(py)? else {
            return Ok(None);
        };
        let (head, work) = self.accept(&wire, position);
        RUNNING.store(head.task, Ordering::SeqCst);
        let kwargs = |work: &Work<'py>| match &work.kwargs {
            Some(kwargs) => kwargs.clone(),
            None => pyo3::types::PyDict::new(py).into_any(),
        };
        let message = match work {
            Ok(work) => (
                head.task,
                work.func.clone(),
                work.args.clone(),
                kwargs(&work),
            )
                .into_pyobject(py)?,
            Err(error) => {
                let func = wire.call_method1(intern!(py, "Unreadable"), (error.into_value(py),))?;
                let nothing = pyo3::types::PyTuple::empty(py).into_any();
                (
                    head.task,
                    func,
                    nothing,
                    pyo3::types::PyDict::new(py).into_any(),
                )
                    .into_pyobject(py)?
            }
        };
        Ok(Some(message.into_any()))
    }

    /// Reports the outcome of the task that `get` gave.
    fn put(
        &self,
        wire: Bound<'_, PyAny>,
        task: u64,
        success: bool,
        value: Bound<'_, PyAny>,
    ) -> PyResult<()> {
        RUNNING.store(0, Ordering::SeqCst);
        self.finish(&wire, task, success, &value)
    }
}
