//! What a queue object consists of, and how it puts and takes messages.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::long::Taken;
use super::message::{self, BYTES, LONG, Message, PICKLE};
use crate::ipc::channel::{Channel, Put};
use crate::ipc::fifo::{self, Appender, At, Record, Store, bell};
use crate::ipc::outbox::Outbox;
use crate::ipc::spin::{self, Spinner};
use crate::py::block::{Deadline, block_on};
use crate::py::buffer::BytesInMaking;
use crate::py::error::os_error;
use crate::sys::cpu::many_cpus;
use crate::sys::fork;
use crate::sys::io::Target;
use crate::sys::mutex::Mutex;

pyo3::import_exception!(queue, Empty);

/// Shorter pickles are copied out of the ring to the stack.
pub const SHORT: usize = 512;
/// How long who will not wait does so all the same: for a lock that its owner is about to give up,
/// or for messages that are on their way into the ring.
const MOMENT: Duration = Duration::from_millis(100);

/// The parts of an initialised [`Queue`](super::Queue). *Process-local* handle of *process-shared*
/// memory.
pub struct Parts {
    pub channel: Arc<Channel>,
    /// Held for an instant and with the GIL, so no other thread holds it when a process forks.
    outbox: Mutex<Arc<Outbox>>,
    /// whether it, or one of a process that this one was forked from, was ever used
    has_moved: AtomicBool,
    readers: Spinner,
    writers: Spinner,
    /// the fork generation, plus 1, in which it was closed
    pub closed: AtomicU32,
    /// the same for when `_start_thread` was called
    pub started: AtomicU32,
    /// What `get_many` had when an exception came, the next last. Locked for an instant and with
    /// the GIL.
    kept: Mutex<Vec<Py<PyAny>>>,
    /// the fork generation, plus 1, that it is of
    kept_in: AtomicU32,
}

impl Drop for Parts {
    fn drop(&mut self) {
        self.channel.close(self.is_moving());
        if !self.outbox.get_mut().is_ours() {
            // The parent's thread may have been changing it.
            std::mem::forget(std::mem::replace(self.outbox.get_mut(), Outbox::new()));
        }
    }
}

/// Memory on the stack for a short pickle.
pub type Short = [u8; SHORT];

/// A message as it came out of the ring.
pub enum Raw {
    /// so many bytes of a pickle, in the buffer of who took it
    Short(usize),
    Pickle(Vec<u8>),
    Bytes(Py<PyBytes>),
    Long(Taken),
}

impl Raw {
    pub fn decode<'py>(self, py: Python<'py>, short: &Short) -> PyResult<Bound<'py, PyAny>> {
        match self {
            Self::Short(len) => message::decode(py, &short[..len]),
            Self::Pickle(bytes) => message::decode(py, &bytes),
            Self::Bytes(bytes) => Ok(bytes.into_bound(py).into_any()),
            Self::Long(taken) => taken.read(py),
        }
    }
}

impl Parts {
    pub fn new(channel: Channel) -> Self {
        Self {
            channel: Arc::new(channel),
            outbox: Mutex::new(Outbox::new()),
            has_moved: AtomicBool::new(false),
            readers: Spinner::default(),
            writers: Spinner::default(),
            closed: AtomicU32::new(0),
            started: AtomicU32::new(0),
            kept: Mutex::default(),
            kept_in: AtomicU32::new(0),
        }
    }

    #[inline]
    pub fn is_closed(&self) -> bool {
        let closed = self.closed.load(Ordering::Relaxed);
        closed != 0 && closed == fork::generation() + 1
    }

    /// This process's own.
    #[inline]
    pub fn outbox(&self) -> Arc<Outbox> {
        let mut outbox = self.outbox.lock();
        if !outbox.is_ours() {
            std::mem::forget(std::mem::replace(&mut *outbox, Outbox::new()));
        }
        Arc::clone(&outbox)
    }

    /// Whether what is put has to wait its turn.
    #[inline]
    pub fn is_moving(&self) -> bool {
        self.has_moved.load(Ordering::Relaxed) && self.outbox().is_busy()
    }

    /// Takes a lock of the ring; false when it cannot be had in time.
    ///
    /// Never holds it while waiting for the GIL, which another thread may keep for long.
    #[inline]
    pub fn lock(&self, py: Python<'_>, at: At, deadline: Deadline) -> PyResult<bool> {
        Ok(self.channel.try_lock(at) || self.wait_for_lock(py, at, deadline)?)
    }

    #[cold]
    fn wait_for_lock(&self, py: Python<'_>, at: At, deadline: Deadline) -> PyResult<bool> {
        let deadline = deadline.at_least(MOMENT);
        let channel = &*self.channel;
        loop {
            let was_free = block_on(py, deadline, |left| {
                let got = channel.lock(at, left)?;
                if got {
                    channel.unlock(at);
                }
                Ok(got)
            })?;
            if !was_free || channel.try_lock(at) {
                return Ok(was_free);
            }
        }
    }

    // ---- taking ----

    /// Takes an object, if there is one. `queue.Empty` if somebody keeps the others from taking
    /// anything until the time is over.
    #[inline]
    pub fn take<'py>(
        &self,
        py: Python<'py>,
        deadline: Deadline,
        short: &mut Short,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        if self.has_kept() {
            let object = self.kept.lock().pop();
            if object.is_some() {
                return Ok(object.map(|object| object.into_bound(py)));
            }
            self.kept_in.store(0, Ordering::Relaxed);
        }
        match self.take_one(py, deadline, short)? {
            Some(raw) => raw.decode(py, short).map(Some),
            None => Ok(None),
        }
    }

    /// Keeps what was taken for who takes next.
    pub fn keep(&self, objects: Vec<Bound<'_, PyAny>>) {
        if objects.is_empty() {
            return;
        }
        let mut kept = self.kept.lock();
        if !self.has_kept() {
            // A forked child has its parent's, which are not for it.
            kept.clear();
        }
        kept.extend(objects.into_iter().rev().map(Bound::unbind));
        let now = fork::generation() + 1;
        self.kept_in.store(now, Ordering::Relaxed);
    }

    /// Whether this process has something that it has taken and nobody got.
    #[inline]
    pub fn has_kept(&self) -> bool {
        let kept_in = self.kept_in.load(Ordering::Relaxed);
        kept_in != 0 && kept_in == fork::generation() + 1
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
            self.found_empty(py);
            return Ok(None);
        }
        if !self.lock(py, At::RLock, deadline)? {
            return Err(Empty::new_err(()));
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
        self.found_empty(py);
        raw
    }

    /// What a reader does who may have found the ring empty.
    #[inline]
    fn found_empty(&self, py: Python<'_>) {
        if self.channel.has_to_unsignal() {
            py.detach(|| self.channel.unsignal());
        }
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
    pub fn wait_for_item(&self, py: Python<'_>, deadline: Deadline) -> PyResult<bool> {
        let memory = &self.channel.memory;
        let look = || (!fifo::is_empty(memory)).then_some(());
        let found = block_on(py, deadline, |left| {
            if left.is_none_or(|left| !left.is_zero())
                && self.readers.spin(spin::ANSWER, many_cpus, look).is_some()
            {
                return Ok(Some(()));
            }
            bell::wait(memory, At::Items, left, look, || Err(Errno::EINTR))
        })?;
        Ok(found.is_some())
    }

    /// Waits for something to take; `queue.Empty` when the time was over.
    pub fn wait_or_empty(&self, py: Python<'_>, deadline: Deadline) -> PyResult<()> {
        if self.wait_for_item(py, deadline)? || self.is_on_its_way(py)? {
            return Ok(());
        }
        Err(Empty::new_err(()))
    }

    /// Nothing is in the ring, but a process may be about to move something there: it counts as
    /// being in the queue, so who will not wait should have it too.
    pub fn is_on_its_way(&self, py: Python<'_>) -> PyResult<bool> {
        if self.is_empty(py) {
            return Ok(false);
        }
        let deadline = Deadline::after(Some(MOMENT.as_secs_f64()))?;
        self.wait_for_item(py, deadline)
    }

    // ---- counting ----

    /// How many messages there are, those of dead processes not counted.
    pub fn len(&self, py: Python<'_>) -> u32 {
        let now = self.channel.count_at_once();
        now.unwrap_or_else(|| py.detach(|| self.channel.count()))
    }

    pub fn is_empty(&self, py: Python<'_>) -> bool {
        fifo::is_empty(&self.channel.memory) && self.len(py) == 0
    }

    /// Whether there are as many messages as there may be.
    pub fn is_full(&self, py: Python<'_>) -> bool {
        self.channel.is_full_now() && self.len(py) >= self.channel.limit()
    }

    // ---- putting ----

    /// Waits for a place in a bounded queue; false when the time was over.
    pub fn wait_for_place(&self, py: Python<'_>, deadline: Deadline) -> PyResult<bool> {
        let channel = &*self.channel;
        let look = || (!channel.is_full_now()).then_some(());
        let found = block_on(py, deadline, |left| {
            if left.is_none_or(|left| !left.is_zero())
                && self.writers.spin(spin::BRIEF, many_cpus, look).is_some()
            {
                return Ok(Some(()));
            }
            // Counting leaves the dead out.
            let slice = || {
                channel.count();
                Err(Errno::EINTR)
            };
            bell::wait(&channel.memory, At::Places, left, look, slice)
        })?;
        Ok(found.is_some() || !self.is_full(py))
    }

    /// Puts a message, into the ring or behind what waits for room there.
    pub fn put_one(&self, py: Python<'_>, deadline: Deadline, message: &Message) -> PyResult<Put> {
        if !self.is_moving() {
            for again in [true, false] {
                let put = self.put_into_ring(py, deadline, message)?;
                if put != Put::NoRoom {
                    return Ok(put);
                }
                if !again || !self.look_for_room(py) {
                    break;
                }
            }
        }
        self.put_behind(py, deadline, message)
    }

    #[inline]
    fn put_into_ring(
        &self,
        py: Python<'_>,
        deadline: Deadline,
        message: &Message,
    ) -> PyResult<Put> {
        let channel = &self.channel;
        if !self.lock(py, At::WLock, deadline)? {
            return Ok(Put::Full);
        }
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
        py.detach(|| self.writers.spin(spin::BRIEF, many_cpus, look))
            .is_some()
    }

    fn put_behind(&self, py: Python<'_>, deadline: Deadline, message: &Message) -> PyResult<Put> {
        let channel = &self.channel;
        self.has_moved.store(true, Ordering::Relaxed);
        let outbox = self.outbox();
        // First what can fail.
        outbox.prepare(channel).map_err(os_error)?;
        // The limit holds for all together, so who has one counts with the lock.
        if channel.limit() != 0 || !outbox.count_again(channel) {
            if !self.lock(py, At::WLock, deadline)? {
                return Ok(Put::Full);
            }
            let is_full = channel.is_full_now();
            if !is_full {
                outbox.count(channel);
            }
            channel.unlock(At::WLock);
            if is_full {
                return Ok(Put::Full);
            }
        }
        outbox.push(channel, message.tag(), message.source(py));
        Ok(Put::NoRoom)
    }

    /// Puts as many of these as the ring has room for, at once; how many.
    pub fn put_run(
        &self,
        py: Python<'_>,
        deadline: Deadline,
        messages: &[Message],
    ) -> PyResult<usize> {
        let channel = &self.channel;
        if self.is_moving() {
            return Ok(0);
        }
        if !self.lock(py, At::WLock, deadline)? {
            return Ok(0);
        }
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
