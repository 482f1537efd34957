//! The pool's side.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::calls::{self, Names};
use super::messages;
use super::result::PoolResult;
use super::sequence::PoolSequence;
use super::worker::PoolLane;
use crate::pool::hub::Hub;
use crate::pool::jobs::{Cell, Owner};
use crate::pool::message::Call;
use crate::pool::shared::NAMED;
use crate::pool::state::{Cancelled, Gained, Mail};
use crate::py::block::{Deadline, block_on};
use crate::py::error::os_error;
use crate::py::fork::{Forked, Moment, fork_each};
use crate::sys::cpu;
use crate::sys::fork::Kept;
use crate::sys::lifeline;
use crate::sys::mutex::Mutex;

/// The tasks and workers of one pool, and the thread that looks after them.
///
/// Process-local: in a forked child every method raises RuntimeError, except `abandon`. Every task
/// ends with one outcome, whatever dies; see `src/pool/`.
#[pyclass(frozen, weakref, module = "billiard._core")]
pub struct PoolEngine {
    hub: Kept<Arc<Hub>>,
    /// `billiard._pool.wire`, or something with its functions.
    wire: Py<PyAny>,
    names: Names,
    /// The pool, while it has tasks: callers that wait for one keep it alive. The mutex is held for
    /// an instant and with the GIL.
    keeps: Mutex<Option<Py<PyAny>>>,
    /// The engine's, as long as it has not been waited for.
    thread: Kept<Mutex<Option<JoinHandle<()>>>>,
}

impl PoolEngine {
    pub(super) fn hub(&self) -> PyResult<&Arc<Hub>> {
        self.hub.get().ok_or_else(|| {
            PyRuntimeError::new_err("a pool can only be used by the process that made it")
        })
    }

    pub(super) fn wire<'py>(&self, py: Python<'py>) -> &Bound<'py, PyAny> {
        self.wire.bind(py)
    }

    /// Whether that is news.
    fn keep(&self, pool: &Bound<'_, PyAny>) -> bool {
        let mut keeps = self.keeps.lock();
        let news = keeps.is_none();
        if news {
            *keeps = Some(pool.clone().unbind());
        }
        news
    }

    /// Keeps the pool as long as it has tasks, of which some have just been submitted.
    pub(super) fn keep_for_tasks(&self, pool: &Bound<'_, PyAny>) {
        // Another thread may have found no tasks, and let go, before there were these; or they have
        // ended already.
        if self.keep(pool) {
            self.let_go();
        }
    }

    pub(super) fn kept(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.keeps.lock().as_ref().map(|pool| pool.clone_ref(py))
    }

    /// Waits without the GIL until `done`; false when the time is over.
    pub(super) fn wait_until(
        &self,
        py: Python<'_>,
        deadline: Deadline,
        done: &(dyn Fn() -> bool + Sync),
    ) -> PyResult<bool> {
        let hub = self.hub()?;
        let left = || deadline.remaining();
        let result = block_on(py, deadline, |_| hub.wait_until(&|| done(), &left));
        self.let_go();
        result
    }

    /// Submits a call. Fails `owner` itself if the call cannot be encoded.
    fn submit(
        &self,
        owner: Owner,
        func: &Bound<'_, PyAny>,
        args: &Bound<'_, PyAny>,
        kwargs: &Bound<'_, PyAny>,
        limits: (f64, f64),
    ) -> PyResult<u64> {
        let py = func.py();
        let hub = self.hub()?;
        let wire = self.wire(py);
        let mut gained = Gained::default();
        let plain = !matches!(owner, Owner::Book(..));
        let again = owner.clone();
        let submitted = calls::encode_call(
            wire,
            &self.names,
            &hub.extents,
            func,
            args,
            kwargs,
            |call| match call {
                Ok((name, body)) if plain => {
                    let mut state = hub.state();
                    state.submit_inline(owner, NAMED, name, body, &mut gained)
                }
                Ok((name, body)) => {
                    let call = Call::Inline {
                        flags: NAMED,
                        func: name.len() as u16,
                        bytes: [name, body].concat().into(),
                    };
                    hub.state().submit(owner, call, limits, &mut gained)
                }
                Err(call) => hub.state().submit(owner, call, limits, &mut gained),
            },
        );
        match submitted {
            Ok(Ok(task)) => {
                hub.follow_up(&gained);
                Ok(task)
            }
            Ok(Err(_)) => Err(PyValueError::new_err("Pool not running")),
            Err(error) if error.is_instance_of::<pyo3::exceptions::PyException>(py) => {
                let info = calls::failure(wire, error)?;
                hub.state().deliver(again, calls::local(&info), &mut gained);
                hub.follow_up(&gained);
                hub.announce_outcomes();
                Ok(0)
            }
            Err(error) => Err(error),
        }
    }

    /// Fails owners whose tasks have been taken out of the books.
    fn fail(&self, owners: Vec<Owner>, info: &Bound<'_, PyAny>) -> PyResult<()> {
        let hub = self.hub()?;
        let mut gained = Gained::default();
        for owner in owners {
            hub.state().deliver(owner, calls::local(info), &mut gained);
        }
        (gained.drained, gained.room) = (true, true);
        hub.follow_up(&gained);
        hub.announce_outcomes();
        // Perhaps that was the last: whoever has waited for it will not look any more.
        self.let_go();
        Ok(())
    }

    pub(super) fn cancel_task(&self, task: u64, info: &Bound<'_, PyAny>) -> PyResult<bool> {
        let hub = self.hub()?;
        let (cancelled, owner) = hub.state().cancel(task);
        self.fail(owner.into_iter().collect(), info)?;
        // The engine keeps the time until its worker is killed.
        hub.kick();
        Ok(cancelled != Cancelled::TooLate)
    }
}

#[pymethods]
impl PoolEngine {
    /// Makes the shared memory and starts the thread.
    #[new]
    fn new(wire: Py<PyAny>) -> PyResult<Self> {
        let hub = Arc::new(Hub::new().map_err(os_error)?);
        Ok(Self {
            hub: Kept::new(hub),
            wire,
            names: Names::default(),
            keeps: Mutex::new(None),
            thread: Kept::new(Mutex::new(None)),
        })
    }

    /// Starts the thread that looks after deaths, limits, and outcomes that nobody waits for.
    fn start(&self) -> PyResult<()> {
        let thread = crate::pool::engine::start(self.hub()?.clone()).map_err(os_error)?;
        if let Some(place) = self.thread.get() {
            *place.lock() = Some(thread);
        }
        Ok(())
    }

    // ---- tasks ----

    /// Has `func(*args, **kwargs)` called; the result. The pool lives until it is there.
    fn apply(
        slf: &Bound<'_, Self>,
        pool: &Bound<'_, PyAny>,
        func: &Bound<'_, PyAny>,
        args: &Bound<'_, PyAny>,
        kwargs: &Bound<'_, PyAny>,
    ) -> PyResult<PoolResult> {
        let this = slf.get();
        let cell = Arc::new(Cell::default());
        this.keep(pool);
        let submitted = this.submit(Owner::Cell(cell.clone()), func, args, kwargs, (0.0, 0.0));
        let task = submitted.inspect_err(|_| this.let_go())?;
        cell.set_task(task);
        this.keep_for_tasks(pool);
        if task == 0 {
            this.let_go(); // it could not be encoded
        }
        Ok(PoolResult::new(slf.clone().unbind(), cell))
    }

    /// A sequence of results, for tasks that :meth:`feed` will submit.
    fn sequence(
        slf: &Bound<'_, Self>,
        pool: &Bound<'_, PyAny>,
        ordered: bool,
    ) -> PyResult<PoolSequence> {
        let this = slf.get();
        this.hub()?;
        this.keep(pool);
        Ok(PoolSequence::new(slf.clone().unbind(), ordered))
    }

    /// Submits a task of a job of the book.
    #[allow(clippy::too_many_arguments)]
    fn put(
        &self,
        job: i64,
        i: Option<i64>,
        func: &Bound<'_, PyAny>,
        args: &Bound<'_, PyAny>,
        kwargs: &Bound<'_, PyAny>,
        soft: f64,
        hard: f64,
    ) -> PyResult<()> {
        let owner = Owner::Book(job, i.unwrap_or(-1));
        self.submit(owner, func, args, kwargs, (soft, hard))
            .map(drop)
    }

    /// Submits a task of a sequence.
    pub(super) fn put_item(
        &self,
        sequence: &PoolSequence,
        i: u64,
        func: &Bound<'_, PyAny>,
        item: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let owner = Owner::Item(sequence.shared()?.clone(), i);
        let args = PyTuple::new(func.py(), [item])?;
        let kwargs = pyo3::types::PyDict::new(func.py());
        self.submit(owner, func, args.as_any(), kwargs.as_any(), (0.0, 0.0))
            .map(drop)
    }

    /// Waits until there is room, or no tasks are wanted any more.
    fn wait_for_room(&self, py: Python<'_>, tasks: usize, bytes: usize) -> PyResult<()> {
        let hub = self.hub()?;
        block_on(py, Deadline::Never, |_| hub.wait_for_room(tasks, bytes))
    }

    /// Ends the tasks of a job of the book, or one of them; their outcome is `info`. Whether there was
    /// one that could still be ended.
    fn cancel(&self, job: i64, i: Option<i64>, info: &Bound<'_, PyAny>) -> PyResult<bool> {
        let tasks = self.hub()?.state().of_job(job, i);
        let mut any = false;
        for task in tasks {
            any |= self.cancel_task(task, info)?;
        }
        Ok(any)
    }

    /// The outcome of a task that was lost with its worker.
    fn settle(&self, task: u64, info: &Bound<'_, PyAny>) -> PyResult<()> {
        let task = self.hub()?.state().remove(task);
        self.fail(task.map(|task| task.owner).into_iter().collect(), info)
    }

    /// Fails all tasks that no worker has claimed, with an ExceptionInfo.
    fn withdraw(&self, info: &Bound<'_, PyAny>) -> PyResult<()> {
        let owners = self.hub()?.state().withdraw_all();
        self.fail(owners, info)
    }

    /// Fails all tasks of callers (not those of the book), with an ExceptionInfo.
    fn abandon_all(&self, info: &Bound<'_, PyAny>) -> PyResult<()> {
        let hub = self.hub()?;
        let owners = hub.state().abandon_all();
        let owners = owners
            .into_iter()
            .filter(|owner| !matches!(owner, Owner::Book(..)));
        self.fail(owners.collect(), info)
    }

    // ---- the book's thread ----

    /// Waits for a message, at most so many seconds: `(True, message)` or `(False, None)`.
    #[pyo3(signature = (timeout=None))]
    fn poll<'py>(&self, py: Python<'py>, timeout: Option<f64>) -> PyResult<(bool, Py<PyAny>)> {
        let hub = self.hub()?;
        match take(
            py,
            timeout,
            || hub.take_mail(),
            |left| hub.wait_for_mail(left),
        )? {
            Some(mail) => Ok((true, messages::of_mail(self.wire(py), mail)?)),
            None => Ok((false, py.None())),
        }
    }

    /// Has `poll` return a message when all that came before has been taken.
    fn post(&self, message: Py<PyAny>) -> PyResult<()> {
        self.hub()?.post(Mail::Posted(Box::new(message)));
        Ok(())
    }

    // ---- the thread that looks after the workers ----

    /// Waits for an event, at most so many seconds: a message, or None.
    #[pyo3(signature = (timeout=None))]
    fn next_event(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Py<PyAny>> {
        let hub = self.hub()?;
        match take(
            py,
            timeout,
            || hub.take_event(),
            |left| hub.wait_for_event(left),
        )? {
            Some(event) => messages::of_event(self.wire(py), event),
            None => Ok(py.None()),
        }
    }

    /// Has `next_event` return: there is something else to look after.
    fn change(&self) -> PyResult<()> {
        self.hub()?.announce_change();
        Ok(())
    }

    // ---- the life of the pool ----

    /// Lets go of the pool if it has no tasks.
    pub(super) fn let_go(&self) {
        let Some(hub) = self.hub.get() else { return };
        if hub.state().live == 0 {
            let pool = self.keeps.lock().take();
            // Perhaps the last reference: what that does, it does without the lock.
            drop(pool);
        }
    }

    /// Tasks that have ended since this was last asked.
    fn take_ended(&self) -> PyResult<u64> {
        Ok(std::mem::take(&mut self.hub()?.state().ended))
    }

    /// Tasks without an outcome.
    fn live(&self) -> PyResult<usize> {
        Ok(self.hub()?.state().live)
    }

    /// Waits until there are no tasks, at most so many seconds; whether that is so.
    #[pyo3(signature = (timeout=None))]
    fn wait_idle(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let hub = self.hub()?;
        self.wait_until(py, Deadline::after(timeout)?, &|| hub.state().live == 0)
    }

    /// Ends all tasks of callers; their outcome is `info`. The results of those that had none.
    fn cancel_all(slf: &Bound<'_, Self>, info: &Bound<'_, PyAny>) -> PyResult<Vec<PoolResult>> {
        let this = slf.get();
        let mut unfinished = Vec::new();
        let tasks = this.hub()?.state().of_callers();
        for task in tasks {
            let (cancelled, owner) = this.hub()?.state().cancel(task);
            if let Some(Owner::Cell(cell)) = &owner
                && cancelled != Cancelled::TooLate
            {
                unfinished.push(PoolResult::failed(slf.clone().unbind(), cell.clone(), info));
            }
            this.fail(owner.into_iter().collect(), info)?;
        }
        this.hub()?.kick();
        Ok(unfinished)
    }

    /// Whether a task waits for a worker.
    fn has_waiting(&self) -> PyResult<bool> {
        Ok(self.hub()?.has_waiting())
    }

    // ---- workers ----

    /// The shared memory of the next worker.
    fn lane(&self) -> PyResult<PoolLane> {
        let hub = self.hub()?;
        let index = hub.state().reserve();
        PoolLane::create(hub, index).inspect_err(|_| hub.state().release(index))
    }

    /// Forks a worker for each lane, which it gets and no other; returns what `fork_all` does.
    ///
    /// Of the first ones, those that no CPU is free for begin when there are two tasks, or some
    /// milliseconds after `start`: before, they would only take it from this process, and from the
    /// worker of its first task. For `standstill` see `fork_each`.
    #[pyo3(signature = (lanes, standstill=None))]
    fn fork_workers(
        &self,
        py: Python<'_>,
        lanes: Vec<PyRef<'_, PoolLane>>,
        standstill: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Forked> {
        let common = &self.hub()?.common;
        let line = lifeline::end_for_children().map_err(os_error)?;
        let at_once = (cpu::usable() - 1).max(1);
        fork_each(py, lanes.len(), standstill, |moment, number| match moment {
            Moment::Before => lanes[number].admit(),
            Moment::Parent => lanes[number].withhold(),
            Moment::Child => {
                // Before anything that takes time. If it fails the worker will say so.
                let _ = lifeline::hold_on(line);
                if number >= at_once {
                    common.wait_to_begin();
                }
            }
        })
    }

    /// Lets all workers begin.
    fn begin(&self) -> PyResult<()> {
        self.hub()?.common.begin();
        Ok(())
    }

    /// How many workers have become ready so far.
    fn ready(&self) -> PyResult<u64> {
        Ok(self.hub()?.common.ready().load(Ordering::Acquire))
    }

    /// No worker has been started with it.
    fn forgo(&self, lane: &PoolLane) -> PyResult<()> {
        self.hub()?.state().release(lane.index().into());
        Ok(())
    }

    /// A worker has been started with `lane`: `sentinel` becomes readable when it ends.
    fn attach(&self, lane: &PoolLane, pid: i32, sentinel: RawFd) -> PyResult<()> {
        let hub = self.hub()?;
        let copy = || crate::sys::io::duplicate(sentinel).map_err(os_error);
        let sentinels = (copy()?, copy()?);
        let index = usize::from(lane.index());
        hub.state().attach(index, pid, lane.lane(), Some(sentinels));
        // What it has reported before it was known, nobody has been told of.
        hub.announce_outcomes();
        hub.kick();
        Ok(())
    }

    /// A worker has been started with `lane`, and has ended: its task goes on as at any other death.
    fn bury(&self, lane: &PoolLane, pid: i32) -> PyResult<()> {
        let hub = self.hub()?;
        let index = usize::from(lane.index());
        let gained = {
            let mut state = hub.state();
            state.attach(index, pid, lane.lane(), None);
            state.bury(index)
        };
        hub.follow_up(&gained);
        hub.announce_outcomes();
        Ok(())
    }

    /// Has a worker take no more tasks, and exit; false if it is at one.
    fn retire(&self, index: usize, even_if_busy: bool) -> PyResult<bool> {
        let hub = self.hub()?;
        hub.drain(); // whose outcome has come is not busy any more
        self.let_go();
        Ok(hub.state().retire(index, even_if_busy))
    }

    /// Whether a worker is at a task.
    fn is_busy(&self, index: usize) -> PyResult<bool> {
        let hub = self.hub()?;
        hub.drain();
        self.let_go();
        Ok(hub.state().is_busy(index))
    }

    /// Decides that what a worker is at will not be finished; false if it is at nothing.
    fn condemn(&self, index: usize) -> PyResult<bool> {
        Ok(self.hub()?.state().condemn_current(index))
    }

    // ---- the end ----

    /// No more tasks will be submitted: workers exit when all are done.
    fn close(&self) -> PyResult<()> {
        self.hub()?.close();
        Ok(())
    }

    /// Hands out nothing more. Callers whose tasks no worker has claimed get an ExceptionInfo.
    fn terminate(&self, info: &Bound<'_, PyAny>) -> PyResult<()> {
        let owners = self.hub()?.terminate();
        let ours = owners
            .into_iter()
            .filter(|owner| !matches!(owner, Owner::Book(..)));
        self.fail(ours.collect(), info)
    }

    /// Closes the descriptors: in a forked child that is no worker of the pool.
    fn abandon(&self) {
        self.hub.foreign().close_descriptors();
    }

    /// Ends the thread, and lets go of the pool.
    fn stop(&self, py: Python<'_>) {
        if let Some(hub) = self.hub.get() {
            hub.stop();
            let pool = self.keeps.lock().take();
            drop(pool);
        }
        let thread = self.thread.get().and_then(|thread| thread.lock().take());
        if let Some(thread) = thread {
            // It needs an instant, and no GIL. Its descriptors are closed then.
            let _ = py.detach(|| thread.join());
        }
    }
}

/// Takes something out of a queue; waits for it at most so many seconds.
fn take<T>(
    py: Python<'_>,
    timeout: Option<f64>,
    next: impl Fn() -> Option<T>,
    wait: impl Fn(Option<Duration>) -> nix::Result<bool> + Sync,
) -> PyResult<Option<T>> {
    let mut deadline = None;
    loop {
        if let Some(found) = next() {
            return Ok(Some(found));
        }
        let deadline = match deadline {
            Some(deadline) => deadline,
            None => *deadline.insert(Deadline::after(timeout)?),
        };
        if deadline.passed() {
            return Ok(None);
        }
        block_on(py, deadline, &wait)?;
    }
}

impl Drop for PoolEngine {
    fn drop(&mut self) {
        if let Some(hub) = self.hub.get() {
            hub.stop();
        }
    }
}
