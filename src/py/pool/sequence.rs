//! What `imap` and `imap_unordered` return for tasks without limits.

use std::sync::Arc;

use pyo3::exceptions::PyStopIteration;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyIterator;
use pyo3::{PyTraverseError, PyVisit};

use super::calls;
use super::engine::PoolEngine;
use crate::pool::jobs::{Next, Sequence};
use crate::pool::message::Outcome;
use crate::py::block::Deadline;
use crate::sys::fork::Kept;
use crate::sys::mutex::Mutex;

/// The results of :meth:`Pool.imap`, in the order of the tasks, or of
/// :meth:`Pool.imap_unordered`, as they arrive. Made by the pool.
///
/// Process-local; in a forked child its methods raise RuntimeError.
#[pyclass(frozen, weakref, name = "IMapIterator", module = "billiard.pool")]
pub struct PoolSequence {
    engine: Py<PoolEngine>,
    shared: Kept<Arc<Sequence>>,
    source: Mutex<Source>,
    job: calls::JobNumber,
}

struct Feed {
    func: Py<PyAny>,
    items: Py<PyIterator>,
    /// An item that has been read and not become a task: a signal's handler has raised.
    left: Option<Py<PyAny>>,
    /// The pool, if it is needed later for what is read as results are taken.
    pool: Option<Py<PyAny>>,
}

/// What tasks are made of. The mutex is held for an instant and with the GIL; who feeds takes it out.
#[derive(Default)]
struct Source {
    feed: Option<Feed>,
    /// Tasks submitted so far.
    count: u64,
    /// Results taken so far.
    taken: u64,
    /// How many tasks may be ahead of the results that were taken; none: the pool decides.
    buffer: Option<u64>,
}

impl PoolSequence {
    pub(super) fn new(engine: Py<PoolEngine>, ordered: bool) -> Self {
        Self {
            engine,
            shared: Kept::new(Arc::new(Sequence::new(ordered))),
            source: Mutex::default(),
            job: calls::JobNumber::default(),
        }
    }

    pub(super) fn shared(&self) -> PyResult<&Arc<Sequence>> {
        self.engine.get().hub()?;
        Ok(self.shared.get().expect("ours, as the engine is"))
    }

    /// Submits tasks while there may be more of them; whether the source is at its end.
    fn submit(&self, py: Python<'_>, tasks: usize, bytes: usize) -> PyResult<bool> {
        let engine = self.engine.get();
        let shared = self.shared()?;
        let Some(feed) = self.source.lock().feed.take() else {
            return Ok(true);
        };
        let (func, mut items) = (feed.func.into_bound(py), feed.items.into_bound(py));
        let mut left = feed.left.map(|item| item.into_bound(py));
        let pool = feed.pool;
        let again = |func: Bound<'_, PyAny>, items: Bound<'_, PyIterator>, left| {
            self.source.lock().feed = Some(Feed {
                func: func.unbind(),
                items: items.unbind(),
                left,
                pool: pool.as_ref().map(|pool| pool.clone_ref(py)),
            });
        };
        loop {
            let count = {
                let source = self.source.lock();
                let full = source
                    .buffer
                    .is_some_and(|most| source.count.saturating_sub(source.taken) >= most);
                if full {
                    drop(source);
                    again(func, items, left.map(Bound::unbind));
                    return Ok(false);
                }
                source.count
            };
            if count % 64 == 63 || count < 4 {
                // Now and then: nobody may want more, and an iterator in C runs nothing that lets
                // other threads have the interpreter.
                if shared.is_ended() {
                    return Ok(true);
                }
                py.detach(|| ());
            }
            if !engine.hub()?.state().has_room(tasks, bytes) {
                again(func, items, left.map(Bound::unbind));
                return Ok(false);
            }
            match left.take().map(Ok).or_else(|| items.next()) {
                Some(Ok(item)) => match engine.put_item(self, count, &func, &item) {
                    Ok(()) => {
                        self.source.lock().count = count + 1;
                        if let Some(pool) = &pool {
                            engine.keep_for_tasks(pool.bind(py));
                        }
                    }
                    // The pool takes no more tasks.
                    Err(error) if error.is_instance_of::<pyo3::exceptions::PyException>(py) => {
                        // Of a pool that is being terminated everybody is told, and why.
                        if !engine.hub()?.state().terminated {
                            let info = calls::failure(engine.wire(py), error)?;
                            self.fail_at(count, &info)?;
                        }
                        return Ok(true);
                    }
                    Err(error) => {
                        again(func, items, Some(item.unbind()));
                        return Err(error);
                    }
                },
                Some(Err(error)) if error.is_instance_of::<pyo3::exceptions::PyException>(py) => {
                    let info = calls::failure(engine.wire(py), error)?;
                    self.fail_at(count, &info)?;
                    return Ok(true);
                }
                Some(Err(error)) => {
                    again(func, items, None);
                    return Err(error);
                }
                None => {
                    shared.set_length(count);
                    engine.hub()?.announce_outcomes();
                    return Ok(true);
                }
            }
        }
    }

    fn fail_at(&self, i: u64, info: &Bound<'_, PyAny>) -> PyResult<()> {
        let shared = self.shared()?;
        drop(shared.put(i, calls::local(info)));
        shared.set_length(i + 1);
        self.engine.get().hub()?.announce_outcomes();
        Ok(())
    }
}

#[pymethods]
impl PoolSequence {
    /// A generator of items may know what comes of them.
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        if let Some(source) = self.source.try_lock()
            && let Some(feed) = &source.feed
        {
            visit.call(&feed.func)?;
            visit.call(&feed.items)?;
            visit.call(&feed.left)?;
            visit.call(&feed.pool)?;
        }
        Ok(())
    }

    fn __clear__(&self) {
        let feed = self.source.lock().feed.take();
        drop(feed);
    }

    /// What :meth:`feed` submits: `func(item)` for the items. With `buffer`, at most so many are
    /// ahead of the results that have been taken, and `next` submits one for each that it takes: as
    /// long as there are more it keeps `pool` alive.
    #[pyo3(signature = (pool, func, items, buffer=None))]
    fn begin(&self, pool: Py<PyAny>, func: Py<PyAny>, items: Py<PyIterator>, buffer: Option<u64>) {
        let mut source = self.source.lock();
        source.feed = Some(Feed {
            func,
            items,
            left: None,
            pool: buffer.is_some().then_some(pool),
        });
        source.buffer = buffer;
    }

    /// Submits tasks until so many (or bytes of them) wait; true when all have been submitted.
    fn feed(&self, py: Python<'_>, tasks: usize, bytes: usize) -> PyResult<bool> {
        self.submit(py, tasks, bytes)
    }

    /// Has the pool read the input, however far the results are; whether there is any left.
    fn lift(&self) -> bool {
        let mut source = self.source.lock();
        source.buffer.take().is_some() && source.feed.is_some()
    }

    /// Wait for the next result: return the value or raise the task's exception.
    ///
    /// :param timeout: seconds to wait at most.
    /// :raises TimeoutError: it is not there yet.
    /// :raises StopIteration: there are no more.
    #[pyo3(signature = (timeout=None))]
    fn next<'py>(&self, py: Python<'py>, timeout: Option<f64>) -> PyResult<Bound<'py, PyAny>> {
        let engine = self.engine.get();
        let shared = self.shared()?;
        loop {
            match shared.next() {
                Next::Item(outcome) => {
                    // Whatever a signal's handler raises now, the item is not lost.
                    if let Err(error) = self.taken(py) {
                        self.not_taken(outcome);
                        return Err(error);
                    }
                    let decoded = calls::decode_outcome(engine.wire(py), outcome);
                    let (success, value) = decoded.map_err(|given_up| {
                        let (error, outcome) = *given_up;
                        self.not_taken(outcome);
                        error
                    })?;
                    if success {
                        return Ok(value);
                    }
                    let wire = engine.wire(py);
                    let error = wire.call_method1(intern!(py, "task_error"), (value,))?;
                    return Err(PyErr::from_value(error));
                }
                Next::End => {
                    engine.let_go();
                    return Err(PyStopIteration::new_err(()));
                }
                Next::NotYet => {
                    engine.hub()?.drain();
                    engine.let_go();
                    if shared.has_next() {
                        continue;
                    }
                    if self.has_none_ahead() {
                        // There was no room for them when it began.
                        self.submit(py, usize::MAX, usize::MAX)?;
                    }
                    let deadline = Deadline::after(timeout)?;
                    if !engine.wait_until(py, deadline, &|| shared.has_next())? {
                        let wire = engine.wire(py);
                        let error = wire.call_method0(intern!(py, "timeout_error"))?;
                        return Err(PyErr::from_value(error));
                    }
                }
            }
        }
    }

    fn __iter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.next(py, None)
    }

    /// Whether all results have arrived.
    fn ready(&self) -> PyResult<bool> {
        let engine = self.engine.get();
        engine.hub()?.drain();
        engine.let_go();
        Ok(self.shared()?.is_ended())
    }

    /// No more tasks can be made: an ExceptionInfo in the place of the next, then the end.
    #[pyo3(name = "_fail")]
    fn fail(&self, info: &Bound<'_, PyAny>) -> PyResult<()> {
        let (feed, count) = {
            let mut source = self.source.lock();
            (source.feed.take(), source.count)
        };
        drop(feed);
        self.fail_at(count, info)
    }

    /// Forget the job.
    fn discard(&self) {}

    /// Nothing more will come: an ExceptionInfo, then the end.
    #[pyo3(name = "_abandon")]
    fn abandon(&self, info: &Bound<'_, PyAny>) -> PyResult<()> {
        let rest = self.shared()?.abandon(calls::local(info));
        let feed = self.source.lock().feed.take();
        drop((rest, feed));
        self.engine.get().hub()?.announce_outcomes();
        Ok(())
    }

    #[getter(_job)]
    fn job(&self, py: Python<'_>) -> PyResult<i64> {
        self.job.get(self.engine.get().wire(py))
    }
}

impl PoolSequence {
    fn not_taken(&self, outcome: Outcome) {
        let mut source = self.source.lock();
        source.taken = source.taken.saturating_sub(1);
        drop(source);
        if let Some(shared) = self.shared.get() {
            shared.put_back(outcome);
        }
    }

    /// Whether all results have been taken, and taking them is what submits tasks.
    fn has_none_ahead(&self) -> bool {
        let source = self.source.lock();
        source.buffer.is_some() && source.count == source.taken
    }

    /// A result has been taken: there may be room for a task.
    fn taken(&self, py: Python<'_>) -> PyResult<()> {
        let mut source = self.source.lock();
        if source.buffer.is_none() {
            return Ok(());
        }
        source.taken += 1;
        drop(source);
        self.submit(py, usize::MAX, usize::MAX).map(drop)
    }
}
