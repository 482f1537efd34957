//! Queues: under `billiard/queues.py`.
//!
//! ```text
//!  put ──encode──┬─ room in the ring, nothing waits ─────────────► ring ──► get ──decode──►
//!                └─ else: outbox ──(a thread, without the GIL)──►
//! ```
//! Nothing is decoded and no Python object is made but `bytes` while a lock of the ring is held:
//! making others can run the garbage collector, and that any code.

mod long;
mod message;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use nix::errno::Errno;
use parking_lot::Mutex;
use pyo3::exceptions::{PyException, PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyTuple};

use self::long::Taken;
use self::message::{BYTES, LONG, Message, PICKLE};
use super::block::{Deadline, block_on};
use super::buffer::BytesInMaking;
use super::error::os_error;
use super::heap;
use crate::ipc::channel::{Channel, Put};
use crate::ipc::fifo::{self, Appender, At, Record, Store, bell};
use crate::ipc::outbox::Outbox;
use crate::ipc::spin::Spinner;
use crate::sys::fork;
use crate::sys::io::Target;
use crate::sys::parking::many_cpus;

pyo3::import_exception!(queue, Empty);
pyo3::import_exception!(queue, Full);

/// Shorter pickles are copied out of the ring to the stack.
const SHORT: usize = 512;
/// How long who will not wait does so all the same: for a lock that its owner is about to give up,
/// or for messages that are on their way into the ring.
const MOMENT: Duration = Duration::from_millis(100);

/// A queue for many processes. *Process-shared* ring; the object, and what it has put that is not
/// in the ring yet, is *process-local*. A forked child inherits the object and nothing that its
/// parent still has to move.
#[pyclass(frozen, subclass, dict, weakref, module = "billiard._core")]
pub struct Queue {
    parts: OnceLock<Parts>,
}

struct Parts {
    channel: Arc<Channel>,
    /// Held for an instant and with the GIL, so no other thread holds it when a process forks.
    outbox: Mutex<Arc<Outbox>>,
    readers: Spinner,
    writers: Spinner,
    /// the fork generation, plus 1, in which it was closed
    closed: AtomicU32,
    /// the same for when `_start_thread` was called
    started: AtomicU32,
}

impl Drop for Parts {
    fn drop(&mut self) {
        self.channel.close_reader();
        if !self.outbox.get_mut().is_ours() {
            // The parent's thread may have been changing it.
            std::mem::forget(std::mem::replace(self.outbox.get_mut(), Outbox::new()));
        }
    }
}

/// Memory on the stack for a short pickle.
type Short = [u8; SHORT];

/// A message as it came out of the ring.
enum Raw {
    /// so many bytes of a pickle, in the buffer of who took it
    Short(usize),
    Pickle(Vec<u8>),
    Bytes(Py<PyBytes>),
    Long(Taken),
}

impl Raw {
    fn decode<'py>(self, py: Python<'py>, short: &Short) -> PyResult<Bound<'py, PyAny>> {
        match self {
            Self::Short(len) => message::decode(py, &short[..len]),
            Self::Pickle(bytes) => message::decode(py, &bytes),
            Self::Bytes(bytes) => Ok(bytes.into_bound(py).into_any()),
            Self::Long(taken) => taken.read(py),
        }
    }
}

impl Parts {
    fn new(channel: Channel) -> Self {
        Self {
            channel: Arc::new(channel),
            outbox: Mutex::new(Outbox::new()),
            readers: Spinner::default(),
            writers: Spinner::default(),
            closed: AtomicU32::new(0),
            started: AtomicU32::new(0),
        }
    }

    #[inline]
    fn is_closed(&self) -> bool {
        let closed = self.closed.load(Ordering::Relaxed);
        closed != 0 && closed == fork::generation() + 1
    }

    /// This process's own.
    #[inline]
    fn outbox(&self) -> Arc<Outbox> {
        let mut outbox = self.outbox.lock();
        if !outbox.is_ours() {
            std::mem::forget(std::mem::replace(&mut *outbox, Outbox::new()));
        }
        Arc::clone(&outbox)
    }

    /// Takes a lock of the ring; false when it cannot be had in time.
    #[inline]
    fn lock(&self, py: Python<'_>, at: At, deadline: Deadline) -> PyResult<bool> {
        if self.channel.try_lock(at) {
            return Ok(true);
        }
        let channel = &*self.channel;
        block_on(py, deadline, |left| {
            channel.lock(at, left.map(|left| left.max(MOMENT)))
        })
    }

    // ---- taking ----

    /// Takes up to `most` messages out of the ring, as they are.
    fn take(&self, py: Python<'_>, deadline: Deadline, most: usize) -> PyResult<Vec<Raw>> {
        let (mut taken, mut short) = (Vec::new(), [0; SHORT]);
        while taken.len() < most
            && let Some(raw) = self.take_one(py, deadline, &mut short)?
        {
            taken.push(match raw {
                Raw::Short(len) => Raw::Pickle(short[..len].to_vec()),
                other => other,
            });
        }
        Ok(taken)
    }

    #[inline]
    fn take_one(
        &self,
        py: Python<'_>,
        deadline: Deadline,
        short: &mut Short,
    ) -> PyResult<Option<Raw>> {
        let channel = &self.channel;
        if fifo::is_empty(&channel.memory) {
            channel.found_empty();
            return Ok(None);
        }
        if !self.lock(py, At::RLock, deadline)? {
            return Ok(None);
        }
        let raw = match fifo::peek(&channel.memory) {
            Ok(None) => Ok(None),
            Ok(Some(record)) => self.copy_out(py, &record, short).map(Some),
            Err(fifo::Corrupt) => {
                fifo::reset(&channel.memory);
                Err(corrupt())
            }
        };
        channel.unlock(At::RLock);
        channel.taken(1);
        raw
    }

    /// For the holder of `R_LOCK`. On an error without memory the message stays.
    #[inline]
    fn copy_out(&self, py: Python<'_>, record: &Record, short: &mut Short) -> PyResult<Raw> {
        let memory = &self.channel.memory;
        let len = record.len;
        let raw = match record.tag {
            PICKLE if len <= SHORT => {
                memory.read(record.offset, Target::from(&mut short[..len]));
                Raw::Short(len)
            }
            BYTES => {
                let mut bytes = BytesInMaking::new(py, len)?;
                memory.read(record.offset, bytes.target(0));
                Raw::Bytes(bytes.finish())
            }
            tag => {
                let mut bytes = vec![0; len];
                memory.read(record.offset, Target::from(&mut bytes[..]));
                if tag == LONG {
                    let Some(taken) = Taken::new(py, &self.channel, &bytes)? else {
                        fifo::advance(memory, record);
                        return Err(corrupt());
                    };
                    Raw::Long(taken)
                } else {
                    Raw::Pickle(bytes)
                }
            }
        };
        fifo::advance(memory, record);
        Ok(raw)
    }

    /// Waits until there is something in the ring; false when the time was over.
    fn wait_for_item(&self, py: Python<'_>, deadline: Deadline) -> PyResult<bool> {
        let memory = &self.channel.memory;
        let look = || (!fifo::is_empty(memory)).then_some(());
        let found = block_on(py, deadline, |left| {
            if left.is_none_or(|left| !left.is_zero())
                && self.readers.spin(many_cpus, look).is_some()
            {
                return Ok(Some(()));
            }
            bell::wait(memory, At::Items, left, look, || ())
        })?;
        Ok(found.is_some())
    }

    /// Waits for something to take; `queue.Empty` when the time was over.
    fn wait_or_empty(&self, py: Python<'_>, deadline: Deadline) -> PyResult<()> {
        if self.wait_for_item(py, deadline)? || self.is_on_its_way(py)? {
            return Ok(());
        }
        Err(Empty::new_err(()))
    }

    /// Nothing is in the ring, but a process may be about to move something there: it counts as
    /// being in the queue, so who will not wait should have it too.
    fn is_on_its_way(&self, py: Python<'_>) -> PyResult<bool> {
        if self.channel.is_empty() {
            return Ok(false);
        }
        let deadline = Deadline::after(Some(MOMENT.as_secs_f64()))?;
        self.wait_for_item(py, deadline)
    }

    // ---- putting ----

    /// Whether there are as many messages as there may be, those of dead processes not counted.
    fn is_full(&self) -> bool {
        self.channel.limit() != 0 && self.channel.is_full()
    }

    /// Waits for a place in a bounded queue; false when the time was over.
    fn wait_for_place(&self, py: Python<'_>, deadline: Deadline) -> PyResult<bool> {
        let channel = &*self.channel;
        let look = || (!channel.is_full_now()).then_some(());
        let found = block_on(py, deadline, |left| {
            if left.is_none_or(|left| !left.is_zero())
                && self.writers.spin(many_cpus, look).is_some()
            {
                return Ok(Some(()));
            }
            // Counting leaves the dead out.
            let slice = || {
                channel.len();
            };
            bell::wait(&channel.memory, At::Places, left, look, slice)
        })?;
        Ok(found.is_some() || !self.is_full())
    }

    /// Puts a message, into the ring or behind what waits for room there.
    fn put_one(&self, py: Python<'_>, message: &Message) -> PyResult<Put> {
        let outbox = self.outbox();
        if !outbox.is_busy() {
            for again in [true, false] {
                let put = self.put_into_ring(py, message)?;
                if put != Put::NoRoom {
                    return Ok(put);
                }
                if !again || !self.look_for_room(py) {
                    break;
                }
            }
        }
        self.put_behind(py, message, &outbox)
    }

    #[inline]
    fn put_into_ring(&self, py: Python<'_>, message: &Message) -> PyResult<Put> {
        let channel = &self.channel;
        self.lock(py, At::WLock, Deadline::Never)?;
        let put = channel.put(message.tag(), message.source(py));
        channel.unlock(At::WLock);
        if put == Put::Done {
            channel.tell(1);
        }
        Ok(put)
    }

    /// Looks on for a moment whether readers make room: cheaper than to have it moved later.
    fn look_for_room(&self, py: Python<'_>) -> bool {
        let memory = &self.channel.memory;
        let look = || fifo::has_some_room(memory).then_some(());
        py.detach(|| self.writers.spin(many_cpus, look)).is_some()
    }

    fn put_behind(&self, py: Python<'_>, message: &Message, outbox: &Arc<Outbox>) -> PyResult<Put> {
        let channel = &self.channel;
        // First what can fail.
        outbox.prepare(channel).map_err(os_error)?;
        self.lock(py, At::WLock, Deadline::Never)?;
        let is_full = channel.is_full_now();
        if !is_full {
            outbox.count(channel);
        }
        channel.unlock(At::WLock);
        if is_full {
            return Ok(Put::Full);
        }
        outbox.push(channel, message.tag(), message.source(py));
        Ok(Put::NoRoom)
    }

    /// Puts as many of these as the ring has room for, at once; how many.
    fn put_run(&self, py: Python<'_>, messages: &[Message]) -> PyResult<usize> {
        let channel = &self.channel;
        if self.outbox().is_busy() {
            return Ok(0);
        }
        self.lock(py, At::WLock, Deadline::Never)?;
        let mut appender = Appender::begin(&channel.memory);
        let beside = channel.overflow().total();
        let mut count = 0;
        for message in messages {
            let limit = channel.limit();
            if limit != 0 && appender.len() + beside >= limit
                || !appender.add(message.tag(), message.source(py))
            {
                break;
            }
            count += 1;
        }
        if count > 0 {
            channel.commit(appender);
        }
        channel.unlock(At::WLock);
        channel.tell(count as u32);
        Ok(count)
    }
}

fn corrupt() -> PyErr {
    PyOSError::new_err((
        Errno::EIO as i32,
        "the memory of the queue has been overwritten",
    ))
}

fn deadline(block: Option<&Bound<'_, PyAny>>, timeout: Option<f64>) -> PyResult<Deadline> {
    match block {
        Some(block) if !block.is_truthy()? => Deadline::after(Some(0.0)),
        _ => Deadline::after(timeout),
    }
}

impl Queue {
    #[inline]
    fn parts(&self) -> PyResult<&Parts> {
        self.parts
            .get()
            .ok_or_else(|| PyRuntimeError::new_err("__init__ of the queue was not called"))
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
        if self.parts.set(Parts::new(channel)).is_err() {
            return Err(PyRuntimeError::new_err("queue is already initialised"));
        }
        Ok(())
    }

    /// The first time that something has to wait for room, in each process.
    #[cold]
    fn note_thread(slf: &Bound<'_, Self>, parts: &Parts) -> PyResult<()> {
        let now = fork::generation() + 1;
        if parts.started.swap(now, Ordering::Relaxed) != now {
            slf.call_method0("_start_thread")?;
        }
        Ok(())
    }

    /// The message for an object; `None` if it cannot be pickled, which the hook has been told.
    fn encode(
        slf: &Bound<'_, Self>,
        parts: &Parts,
        obj: &Bound<'_, PyAny>,
    ) -> PyResult<Option<Message>> {
        match Message::new(obj, &parts.channel) {
            Ok(message) => Ok(Some(message)),
            Err(error) if error.is_instance_of::<PyException>(slf.py()) => {
                let hook = "_on_queue_feeder_error";
                slf.call_method1(hook, (error.into_value(slf.py()), obj))?;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
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
    fn _set_up(&self, limit: u32) -> PyResult<()> {
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

    #[pyo3(signature = (obj, block=None, timeout=None),
           text_signature = "($self, obj, block=True, timeout=None)")]
    fn put(
        slf: &Bound<'_, Self>,
        obj: &Bound<'_, PyAny>,
        block: Option<&Bound<'_, PyAny>>,
        timeout: Option<f64>,
    ) -> PyResult<()> {
        let parts = Self::open_parts(slf)?;
        let py = slf.py();
        let mut until = Deadline::Never;
        if parts.channel.limit() != 0 {
            until = deadline(block, timeout)?;
            if parts.is_full() && !parts.wait_for_place(py, until)? {
                return Err(Full::new_err(()));
            }
        }
        let Some(message) = Self::encode(slf, parts, obj)? else {
            return Ok(());
        };
        loop {
            match parts.put_one(py, &message)? {
                Put::Done => {
                    message.sent();
                    return Ok(());
                }
                Put::NoRoom => {
                    message.sent();
                    return Self::note_thread(slf, parts);
                }
                Put::Full => {
                    if !parts.wait_for_place(py, until)? {
                        return Err(Full::new_err(()));
                    }
                }
            }
        }
    }

    #[pyo3(signature = (block=None, timeout=None),
           text_signature = "($self, block=True, timeout=None)")]
    fn get<'py>(
        slf: &Bound<'py, Self>,
        block: Option<&Bound<'py, PyAny>>,
        timeout: Option<f64>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let parts = Self::open_parts(slf)?;
        let py = slf.py();
        let until = deadline(block, timeout)?;
        let mut short = [0; SHORT];
        loop {
            if let Some(raw) = parts.take_one(py, until, &mut short)? {
                return raw.decode(py, &short);
            }
            parts.wait_or_empty(py, until)?;
        }
    }

    #[pyo3(signature = (objects, block=None, timeout=None),
           text_signature = "($self, objects, block=True, timeout=None)")]
    fn put_many(
        slf: &Bound<'_, Self>,
        objects: &Bound<'_, PyAny>,
        block: Option<&Bound<'_, PyAny>>,
        timeout: Option<f64>,
    ) -> PyResult<usize> {
        let parts = Self::open_parts(slf)?;
        let py = slf.py();
        let until = deadline(block, timeout)?;
        let mut messages = Vec::new();
        for object in objects.try_iter()? {
            messages.extend(Self::encode(slf, parts, &object?)?);
        }
        let all = messages.len();
        while !messages.is_empty() {
            let put = parts.put_run(py, &messages)?;
            messages.drain(..put).for_each(Message::sent);
            let Some(next) = messages.first() else { break };
            match parts.put_one(py, next)? {
                Put::Done => messages.remove(0).sent(),
                Put::NoRoom => {
                    messages.remove(0).sent();
                    Self::note_thread(slf, parts)?;
                }
                Put::Full if parts.wait_for_place(py, until)? => {}
                Put::Full if messages.len() == all => return Err(Full::new_err(())),
                Put::Full => break,
            }
        }
        Ok(all - messages.len())
    }

    #[pyo3(signature = (most=None, block=None, timeout=None),
           text_signature = "($self, most=None, block=True, timeout=None)")]
    fn get_many<'py>(
        slf: &Bound<'py, Self>,
        most: Option<usize>,
        block: Option<&Bound<'py, PyAny>>,
        timeout: Option<f64>,
    ) -> PyResult<Bound<'py, PyList>> {
        let parts = Self::open_parts(slf)?;
        let py = slf.py();
        let until = deadline(block, timeout)?;
        let found = PyList::empty(py);
        if most == Some(0) {
            return Ok(found);
        }
        loop {
            let taken = parts.take(py, until, most.unwrap_or(usize::MAX))?;
            if taken.is_empty() {
                parts.wait_or_empty(py, until)?;
                continue;
            }
            for raw in taken {
                found.append(raw.decode(py, &[0; SHORT])?)?;
            }
            return Ok(found);
        }
    }

    /// How many objects there are.
    fn qsize(&self) -> PyResult<u32> {
        Ok(self.parts()?.channel.len())
    }

    /// Whether there are none, also in this process's closed queue.
    fn _is_empty(&self) -> PyResult<bool> {
        Ok(self.parts()?.channel.is_empty())
    }

    fn full(&self) -> PyResult<bool> {
        Ok(self.parts()?.is_full())
    }

    /// Waits until there is something to take.
    #[pyo3(signature = (timeout=None))]
    fn _wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let parts = self.parts()?;
        Ok(!fifo::is_empty(&parts.channel.memory)
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
            channel.len();
        };
        block_on(py, Deadline::Never, |left| {
            bell::wait(memory, At::Joins, left, look, slice)
        })?;
        Ok(())
    }

    // ---- the descriptor ----

    /// A descriptor that is readable while there is something to take.
    fn _watch(&self) -> PyResult<i32> {
        self.parts()?.channel.watch().map_err(os_error)
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
        parts.channel.close(parts.outbox().is_busy());
        Ok(())
    }

    // ---- what this process still has to move ----

    /// Whether there is anything.
    fn _is_moving(&self) -> PyResult<bool> {
        Ok(self.parts()?.outbox().is_busy())
    }

    /// Waits until there is nothing. False after `timeout` seconds.
    #[pyo3(signature = (timeout=None))]
    fn _flush(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let outbox = self.parts()?.outbox();
        let deadline = Deadline::after(timeout)?;
        loop {
            if block_on(py, deadline, |left| outbox.wait_until_empty(left))? {
                return Ok(true);
            }
            if deadline.passed() {
                return Ok(false);
            }
        }
    }
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Queue>()
}
