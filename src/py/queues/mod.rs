//! Queues: under `billiard/queues.py`.
//!
//! ```text
//!  put ──encode──┬─ room in the ring, nothing waits ─────────────► ring ──► get ──decode──►
//!                └─ else: outbox ──(a thread, without the GIL)──►
//! ```
//! Nothing is decoded and no Python object is made but `bytes` and `bytearray` while a lock of the
//! ring is held: making others can run the garbage collector, and that any code.

mod long;
mod message;
mod mover;
mod parts;

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use nix::errno::Errno;
use pyo3::exceptions::{PyException, PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};

use self::message::Message;
use self::mover::Mover;
use self::parts::{Empty, Parts, SHORT};
use super::block::{Deadline, block_on};
use super::error::os_error;
use super::heap;
use super::late;
use crate::ipc::channel::{Channel, Put};
use crate::ipc::fifo::{self, At, bell};
use crate::sys::fork;

pyo3::import_exception!(queue, Full);
pyo3::import_exception!(billiard.exceptions, SoftTimeLimitExceeded);

/// A queue for many processes. *Process-shared* ring; the object, and what it has put that is not
/// in the ring yet, is *process-local*. A forked child inherits the object and nothing that its
/// parent still has to move.
#[pyclass(frozen, subclass, dict, weakref, module = "billiard._core")]
pub struct Queue {
    parts: OnceLock<Parts>,
}

fn deadline(block: i32, timeout: Option<f64>) -> PyResult<Deadline> {
    Deadline::after(if block == 0 { Some(0.0) } else { timeout })
}

impl Queue {
    #[inline]
    fn parts(&self) -> PyResult<&Parts> {
        self.parts.get().ok_or_else(|| late::missing("queue"))
    }

    #[inline]
    fn open_parts<'a>(slf: &'a Bound<'_, Self>) -> PyResult<&'a Parts> {
        let parts = slf.get().parts()?;
        if parts.is_closed() {
            let text = format!("Queue {} is closed", slf.repr()?);
            return Err(PyValueError::new_err(text));
        }
        Ok(parts)
    }

    fn set_parts(&self, channel: Channel) -> PyResult<()> {
        late::once(self.parts.set(Parts::new(channel)), "queue")
    }

    /// The first time that something has to wait for room, in each process.
    #[cold]
    fn note_thread(slf: &Bound<'_, Self>, parts: &Parts) -> PyResult<()> {
        let now = fork::generation() + 1;
        if parts.started.swap(now, Ordering::Relaxed) == now {
            return Ok(());
        }
        let start = || slf.call_method0("_start_thread").map(drop);
        let started = start();
        // An exception of a signal handler must not cost what waits: it is to be sent at exit.
        if started.is_err() && start().is_err() {
            parts.started.store(0, Ordering::Relaxed);
        }
        started
    }

    /// The message for an object; `None` if it cannot be pickled, which the hook has been told.
    /// What is not the object's fault is the caller's: a soft time limit, an error of the system.
    fn encode(
        slf: &Bound<'_, Self>,
        parts: &Parts,
        obj: &Bound<'_, PyAny>,
    ) -> PyResult<Option<Message>> {
        match Message::new(obj, &parts.channel) {
            Ok(message) => Ok(Some(message)),
            Err(error) if is_of_the_object(slf.py(), &error) => {
                let hook = "_on_queue_feeder_error";
                slf.call_method1(hook, (error.into_value(slf.py()), obj))?;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

fn is_of_the_object(py: Python<'_>, error: &PyErr) -> bool {
    error.is_instance_of::<PyException>(py)
        && !error.is_instance_of::<PyOSError>(py)
        && !error.is_instance_of::<SoftTimeLimitExceeded>(py)
}

#[pymethods]
impl Queue {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self {
            parts: OnceLock::new(),
        }
    }

    /// Makes an object without parts a new queue for at most `limit` messages (0: any number).
    fn _set_up(&self, limit: i32) -> PyResult<()> {
        let limit = limit.max(0).unsigned_abs();
        self.set_parts(Channel::create(limit).map_err(os_error)?)
    }

    /// Makes an object without parts the queue in this block: what unpickling does. Takes the
    /// descriptors over.
    fn _adopt(&self, block: &heap::Block, reader: i32, writer: i32) -> PyResult<()> {
        let channel = Channel::adopt(Arc::clone(&block.block), reader, writer);
        self.set_parts(channel.map_err(os_error)?)
    }

    /// Sets the two functions that pickle and unpickle what is not plain.
    #[staticmethod]
    fn _pickle_with(py: Python<'_>, dumps: Py<PyAny>, loads: Py<PyAny>) {
        message::pickle_with(py, dumps, loads);
    }

    /// The block of shared memory that the queue is in.
    #[getter]
    fn _block(&self) -> PyResult<heap::Block> {
        Ok(heap::Block {
            block: Arc::clone(&self.parts()?.channel.memory.block),
        })
    }

    #[getter]
    fn _closed(&self) -> PyResult<bool> {
        Ok(self.parts()?.is_closed())
    }

    #[setter(_closed)]
    fn set_closed(&self, closed: bool) -> PyResult<()> {
        let now = if closed { fork::generation() + 1 } else { 0 };
        self.parts()?.closed.store(now, Ordering::Relaxed);
        Ok(())
    }

    #[pyo3(signature = (obj, block=1, timeout=None),
           text_signature = "($self, obj, block=True, timeout=None)")]
    fn put(
        slf: &Bound<'_, Self>,
        obj: &Bound<'_, PyAny>,
        block: i32,
        timeout: Option<f64>,
    ) -> PyResult<()> {
        let parts = Self::open_parts(slf)?;
        let py = slf.py();
        let mut until = deadline(block, timeout)?;
        if parts.channel.limit() == 0 {
            until = Deadline::Never;
        } else if parts.is_full(py) && !parts.wait_for_place(py, until)? {
            return Err(Full::new_err(()));
        }
        let Some(message) = Self::encode(slf, parts, obj)? else {
            return Ok(());
        };
        loop {
            match parts.put_one(py, until, &message)? {
                Put::Done => {
                    message.sent();
                    return Ok(());
                }
                Put::NoRoom => {
                    message.sent();
                    return Self::note_thread(slf, parts);
                }
                Put::Full => {
                    if until.passed() || !parts.wait_for_place(py, until)? {
                        return Err(Full::new_err(()));
                    }
                }
            }
        }
    }

    #[pyo3(signature = (block=1, timeout=None),
           text_signature = "($self, block=True, timeout=None)")]
    fn get<'py>(
        slf: &Bound<'py, Self>,
        block: i32,
        timeout: Option<f64>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let parts = Self::open_parts(slf)?;
        let py = slf.py();
        let until = deadline(block, timeout)?;
        let mut short = [0; SHORT];
        loop {
            if let Some(object) = parts.take(py, until, &mut short)? {
                return Ok(object);
            }
            parts.wait_or_empty(py, until)?;
        }
    }

    #[pyo3(signature = (objects, block=1, timeout=None),
           text_signature = "($self, objects, block=True, timeout=None)")]
    fn put_many(
        slf: &Bound<'_, Self>,
        objects: &Bound<'_, PyAny>,
        block: i32,
        timeout: Option<f64>,
    ) -> PyResult<usize> {
        let parts = Self::open_parts(slf)?;
        let py = slf.py();
        let until = deadline(block, timeout)?;
        let mut messages = VecDeque::new();
        for object in objects.try_iter()? {
            messages.extend(Self::encode(slf, parts, &object?)?);
        }
        let all = messages.len();
        while !messages.is_empty() {
            let put = parts.put_run(py, until, messages.make_contiguous())?;
            messages.drain(..put).for_each(Message::sent);
            let Some(next) = messages.front() else { break };
            let put = parts.put_one(py, until, next)?;
            if put == Put::Full {
                if !until.passed() && parts.wait_for_place(py, until)? {
                    continue;
                }
                if messages.len() == all {
                    return Err(Full::new_err(()));
                }
                break;
            }
            messages.pop_front().into_iter().for_each(Message::sent);
            if put == Put::NoRoom {
                Self::note_thread(slf, parts)?;
            }
        }
        Ok(all - messages.len())
    }

    #[pyo3(signature = (most=None, block=1, timeout=None),
           text_signature = "($self, most=None, block=True, timeout=None)")]
    fn get_many<'py>(
        slf: &Bound<'py, Self>,
        most: Option<usize>,
        block: i32,
        timeout: Option<f64>,
    ) -> PyResult<Bound<'py, PyList>> {
        let parts = Self::open_parts(slf)?;
        let py = slf.py();
        let until = deadline(block, timeout)?;
        // Not more than there are now: others may put faster than this takes.
        let most = most.unwrap_or_else(|| parts.len(py).max(1) as usize);
        let (mut found, mut short) = (Vec::new(), [0; SHORT]);
        while found.len() < most {
            match parts.take(py, until, &mut short) {
                Ok(Some(object)) => found.push(object),
                Ok(None) if found.is_empty() => parts.wait_or_empty(py, until)?,
                Ok(None) => break,
                Err(error) if error.is_instance_of::<Empty>(py) && !found.is_empty() => break,
                Err(error) => {
                    parts.keep(found);
                    return Err(error);
                }
            }
        }
        PyList::new(py, found)
    }

    /// How many objects there are.
    fn qsize(&self, py: Python<'_>) -> PyResult<u32> {
        Ok(self.parts()?.len(py))
    }

    /// Whether there are none, also in this process's closed queue.
    fn _is_empty(&self, py: Python<'_>) -> PyResult<bool> {
        let parts = self.parts()?;
        Ok(!parts.has_kept() && parts.is_empty(py))
    }

    fn full(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.parts()?.is_full(py))
    }

    /// Waits until there is something to take.
    #[pyo3(signature = (timeout=None))]
    fn _wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let parts = self.parts()?;
        Ok(parts.has_kept()
            || !fifo::is_empty(&parts.channel.memory)
            || parts.wait_for_item(py, Deadline::after(timeout)?)?
            || parts.is_on_its_way(py)?)
    }

    // ---- tasks ----

    fn _unfinished(&self) -> PyResult<u32> {
        let channel = &self.parts()?.channel;
        Ok(fifo::unfinished(
            &channel.memory,
            channel.overflow().total(),
        ))
    }

    /// Says that an object has been dealt with; false if all had been.
    fn _task_done(&self) -> PyResult<bool> {
        let channel = &self.parts()?.channel;
        let done = fifo::task_done(&channel.memory, channel.overflow().total());
        if done == Some(true) {
            bell::all_done(&channel.memory);
        }
        Ok(done.is_some())
    }

    /// Waits until every object has been dealt with, if only for a moment.
    fn _join(&self, py: Python<'_>) -> PyResult<()> {
        let channel = &*self.parts()?.channel;
        let memory = &channel.memory;
        let times = bell::times_done(memory);
        let look = || {
            let left = fifo::unfinished(memory, channel.overflow().total());
            (left == 0 || bell::times_done(memory) != times).then_some(())
        };
        let slice = || {
            channel.count();
            Err(Errno::EINTR)
        };
        block_on(py, Deadline::Never, |left| {
            bell::wait(memory, At::Joins, left, look, slice)
        })?;
        Ok(())
    }

    // ---- the descriptor ----

    /// A descriptor that is readable while there is something to take.
    fn _watch(&self, py: Python<'_>) -> PyResult<i32> {
        let channel = &self.parts()?.channel;
        py.detach(|| channel.watch()).map_err(os_error)
    }

    /// Both ends of the pipe, for another process.
    fn _fds(&self) -> PyResult<(i32, i32)> {
        self.parts()?.channel.fds().map_err(os_error)
    }

    fn _writer_fd(&self) -> PyResult<i32> {
        self.parts()?.channel.writer_fd().map_err(os_error)
    }

    /// This process takes no more.
    fn _close_reader(&self) -> PyResult<()> {
        self.parts()?.channel.close_reader();
        Ok(())
    }

    /// This process takes no more, and puts what it still has to move.
    fn _close_ends(&self) -> PyResult<()> {
        let parts = self.parts()?;
        parts.channel.close(parts.is_moving());
        Ok(())
    }

    // ---- what this process still has to move ----

    /// The thread that moves it.
    fn _mover(&self) -> PyResult<Mover> {
        let parts = self.parts()?;
        Ok(Mover::new(&parts.channel, parts.outbox()))
    }

    /// Whether there is anything.
    fn _is_moving(&self) -> PyResult<bool> {
        Ok(self.parts()?.is_moving())
    }
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Mover>()?;
    module.add_class::<Queue>()
}
