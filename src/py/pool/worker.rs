//! The worker's side.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pyo3::exceptions::{
    PyException, PyKeyboardInterrupt, PyRuntimeError, PySystemExit, PyValueError,
};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};

use super::calls::{self, Known, Work};
use crate::pool::hub::Hub;
use crate::pool::message::record;
use crate::pool::shared::{Common, IN_EXTENT, Lane, SLOT, TaskHead, WANTS_ACK, WORKERS};
use crate::pool::station::{Look, Station};
use crate::py::block::{Deadline, block_on};
use crate::py::codec;
use crate::py::error::os_error;
use crate::py::payload::{Outgoing, Source};
use crate::sys::fork;
use crate::sys::mutex::Mutex;

/// Extents of arguments that a worker may hold on to (views of arrays that outlive their task).
/// What comes then is copied: the pool has so many for all workers.
const VIEWS: usize = 16;

/// The task whose function runs in this process, 0 if none does. Process-local.
static RUNNING: AtomicU64 = AtomicU64::new(0);
/// The station of this process, if it is a worker. One that a worker has forked, for a pool of its
/// own, inherits that worker's. The mutex is held for an instant and with the GIL.
static STATION: Mutex<Option<(u32, Arc<Station>)>> = Mutex::new(None);

/// Whether the soft limit of the task that runs here has passed. For the signal's handler: a signal
/// that comes late must not hit the next task.
#[pyfunction]
pub(super) fn soft_limit_passed() -> bool {
    let running = RUNNING.load(Ordering::SeqCst);
    match &*STATION.lock() {
        Some((pid, station)) if *pid == fork::pid() => running != 0 && station.soft() == running,
        _ => false,
    }
}

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

    /// Sends a record, waiting for room if there is none.
    fn report(&self, py: Python<'_>, tag: u32, parts: &[&[u8]]) -> PyResult<()> {
        let station = self.station();
        if station.try_report(tag, parts) {
            return Ok(());
        }
        while !block_on(py, Deadline::Never, |_| station.report_or_sleep(tag, parts))? {}
        Ok(())
    }

    /// Waits for a task; `None`: there will be no more.
    fn claim(&self, py: Python<'_>) -> PyResult<Option<u64>> {
        let station = self.station();
        let mut look = station.look();
        loop {
            match look {
                Look::Claimed(position) => return Ok(Some(position)),
                Look::Leave => {
                    station.pass_on();
                    return Ok(None);
                }
                Look::Nothing => {}
            }
            look = py.detach(|| station.spin());
            if look == Look::Nothing {
                look = block_on(py, Deadline::Never, |_| station.sleep())?;
                if look == Look::Nothing {
                    look = station.look();
                }
            }
        }
    }

    /// Takes the claimed task.
    fn accept<'py>(
        &self,
        wire: &Bound<'py, PyAny>,
        position: u64,
    ) -> PyResult<(TaskHead, PyResult<Work<'py>>)> {
        let py = wire.py();
        let station = self.station();
        let mut slot = [0; SLOT];
        let head = station.accept(position, &mut slot);
        if head.flags & WANTS_ACK != 0 {
            self.report(py, record::ACK, &[&head.task.to_le_bytes()])?;
        }
        let bytes = &slot[TaskHead::SIZE..TaskHead::SIZE + head.payload()];
        let work = if head.flags & IN_EXTENT == 0 {
            calls::decode_call(wire, &mut self.known.lock(), &head, bytes)
        } else {
            self.take(bytes)
                .and_then(|source| calls::decode_large_call(py, source))
        };
        Ok((head, work))
    }

    fn take(&self, bytes: &[u8]) -> PyResult<Source> {
        let strange = || PyRuntimeError::new_err("the pool has sent something strange");
        let reference = bytes.try_into().map_err(|_| strange())?;
        let tasks = &self.station().tasks;
        let taken = tasks
            .take(u32::from_le_bytes(reference))
            .map_err(|_| strange())?;
        if tasks.held() > VIEWS {
            return taken.copy_out().map(Source::Heap).map_err(os_error);
        }
        Ok(Source::Extent(taken))
    }

    /// Reports an outcome, unless it has been decided otherwise: then this process is about to be
    /// ended, and waits for it.
    fn finish(
        &self,
        wire: &Bound<'_, PyAny>,
        task: u64,
        success: bool,
        value: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let py = wire.py();
        let station = self.station();
        let number = task.to_le_bytes();
        let small = if success {
            record::VALUE
        } else {
            record::FAILURE
        };
        let most = SMALL;
        let sent = calls::encode_outcome(wire, value, most, |encoded| match encoded {
            Ok(_) if !self.is_done(task) => Sent::Condemned,
            Ok(bytes) if station.try_report(small, &[&number, bytes]) => Sent::Whole,
            Ok(bytes) => Sent::Waits(bytes.to_vec()),
            Err(packed) => Sent::Large(packed),
        })?;
        match sent {
            Sent::Whole => Ok(()),
            Sent::Condemned => self.wait_for_the_end(py),
            Sent::Waits(bytes) => self.report(py, small, &[&number, &bytes]),
            Sent::Large(packed) => {
                let reference = self.write_extent(py, &packed)?;
                if !self.is_done(task) {
                    return self.wait_for_the_end(py);
                }
                let large = if success {
                    record::BIG_VALUE
                } else {
                    record::BIG_FAILURE
                };
                self.report(py, large, &[&number, &reference.to_le_bytes()])
            }
        }
    }

    /// The outcome of a task is about to be reported; false if it has been decided otherwise.
    fn is_done(&self, task: u64) -> bool {
        let done = self.station().finish(task);
        if done {
            self.lane.done().fetch_add(1, Ordering::Relaxed);
        }
        done
    }

    fn write_extent(&self, py: Python<'_>, packed: &Outgoing) -> PyResult<u32> {
        let station = self.station();
        if packed.is_long() {
            py.detach(|| station.results.wait_for_return(packed.size()));
        }
        loop {
            if let Some(reference) = packed.send(py, &station.results)? {
                return Ok(reference);
            }
            // All are on their way or in use; the pool copies before that lasts.
            block_on(py, Deadline::Never, |_| station.wait_for_reader())?;
        }
    }

    fn wait_for_the_end(&self, py: Python<'_>) -> PyResult<()> {
        for _ in 0..50 {
            py.detach(|| std::thread::sleep(Duration::from_millis(20)));
            py.check_signals()?;
        }
        Err(PySystemExit::new_err((1,)))
    }
}

enum Sent {
    Whole,
    Condemned,
    Waits(Vec<u8>),
    Large(Outgoing),
}

/// Outcomes of up to so many bytes go into the ring.
const SMALL: usize = 32 << 10;
const _: () = assert!(Station::fits(SMALL + 8));

/// Runs tasks; its arguments are the hooks of `billiard.pool.Worker`.
struct Serving<'py> {
    wire: Bound<'py, PyAny>,
    prepare: Option<Bound<'py, PyAny>>,
    fired: Bound<'py, PyList>,
}

impl<'py> Serving<'py> {
    /// Whether the handler of the terminating signals has run: then this process is to exit,
    /// whatever a task has made of the exception.
    fn is_leaving(&self) -> PyResult<bool> {
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
    fn run(
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
    fn send(&self, wire: Bound<'_, PyAny>, message: Bound<'_, PyAny>) -> PyResult<()> {
        let send = |bytes: &[u8]| {
            if Station::fits(bytes.len()) {
                return self.report(wire.py(), record::OTHER, &[bytes]);
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
            let (head, work) = self.accept(&serving.wire, position)?;
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
        let (head, work) = self.accept(&wire, position)?;
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
