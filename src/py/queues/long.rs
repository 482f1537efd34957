//! Messages that are too long for the ring: in chunks beside it.
//!
//! The record says where:
//! ```text
//!  tag of the message   u32      PICKLE or BYTES
//!  parts                u32      the pickle, then the buffers that are not in it
//!  runs                 u32      and 4 bytes of zero
//!  each part            u64      its length; the highest bit: nobody may write to it
//!  each run             u32 u32  its first chunk, how many
//! ```
//! The parts follow one another in the chunks, each from a multiple of 64 bytes on. They are copied
//! without the GIL and without a lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use pyo3::prelude::*;
use pyo3::types::PyList;

use super::message::{BYTES, LONG, PICKLE, loads};
use crate::ipc::channel::{Channel, LONGEST, chunk_at};
use crate::ipc::fifo::spill::{CHUNK, KEPT, Run};
use crate::ipc::fifo::{At, bell};
use crate::py::buffer::{ArrayInMaking, BytesInMaking, Room};
use crate::py::error::os_error;
use crate::py::lent::{LEAST, Lent, MOST};
use crate::sys::io::{Source, Target};
use crate::sys::{clock, extent};

const READONLY: u64 = 1 << 63;
const ALIGNED: u64 = 64;
/// Milliseconds between looks for chunks of the dead.
const LOOK_EVERY: u64 = 100;
/// How long a writer waits for a reader to free memory that is warm. New memory costs about half a
/// millisecond for each MiB, here and again in the reader, who could have had the processor.
const PATIENCE: Duration = Duration::from_millis(2);
/// With fewer chunks in use it is not worth while.
const FEW: u32 = 4;

/// A message beside the ring that no record names yet; freed when dropped. *Process-local*.
pub struct Long {
    channel: Arc<Channel>,
    runs: Vec<Run>,
    record: Vec<u8>,
}

impl Long {
    /// Copies the parts; `OSError` if there is no memory.
    pub fn new(
        py: Python<'_>,
        channel: &Arc<Channel>,
        tag: u32,
        parts: &[Source<'_>],
        readonly: &[bool],
    ) -> PyResult<Self> {
        let total: u64 = parts.iter().map(|part| aligned(part.len() as u64)).sum();
        let count = u32::try_from(total.div_ceil(CHUNK).max(1)).map_err(|_| no_memory())?;
        let file = channel.file().map_err(os_error)?;
        let runs = py.detach(|| take(channel, count)).ok_or_else(no_memory)?;
        let mut record = Vec::new();
        for number in [tag, parts.len() as u32, runs.len() as u32, 0] {
            record.extend(number.to_le_bytes());
        }
        for (index, part) in parts.iter().enumerate() {
            let fixed = index > 0 && readonly[index - 1];
            let flag = if fixed { READONLY } else { 0 };
            record.extend((part.len() as u64 | flag).to_le_bytes());
        }
        for run in &runs {
            record.extend(run.start.to_le_bytes());
            record.extend(run.count.to_le_bytes());
        }
        let long = Self {
            channel: Arc::clone(channel),
            runs,
            record,
        };
        if long.record.len() > LONGEST {
            return Err(no_memory()); // in more pieces than a record can name
        }
        py.detach(|| {
            let mut start = 0;
            for part in parts {
                let write = |at, from, len| {
                    extent::write_at(file, at, part.skip(from as usize).first(len as usize))
                };
                pieces(&long.runs, start, part.len() as u64, write)?;
                start += aligned(part.len() as u64);
            }
            Ok(())
        })
        .map_err(os_error)?;
        Ok(long)
    }

    pub fn record(&self) -> &[u8] {
        &self.record
    }

    /// The record is in the queue: the chunks belong to it.
    pub fn sent(mut self) {
        self.runs.clear();
    }
}

impl Drop for Long {
    fn drop(&mut self) {
        free(&self.channel, &self.runs);
    }
}

fn no_memory() -> PyErr {
    os_error(Errno::ENOMEM)
}

fn aligned(len: u64) -> u64 {
    len.next_multiple_of(ALIGNED)
}

/// Calls `copy` with (place in the file, how much was before, length) for each piece of `len` bytes
/// of the message from `start` on.
fn pieces(
    runs: &[Run],
    start: u64,
    len: u64,
    mut copy: impl FnMut(u64, u64, u64) -> nix::Result<()>,
) -> nix::Result<()> {
    let (mut skip, mut done) = (start, 0);
    for run in runs {
        let size = u64::from(run.count) * CHUNK;
        if skip >= size {
            skip -= size;
            continue;
        }
        let piece = (size - skip).min(len - done);
        if piece > 0 {
            copy(chunk_at(run.start) + skip, done, piece)?;
        }
        done += piece;
        skip = 0;
    }
    if done == len { Ok(()) } else { Err(Errno::EIO) }
}

/// Takes chunks, rather ones that were used before.
fn take(channel: &Channel, count: u32) -> Option<Vec<Run>> {
    /// Waits in vain since the last that paid, and puts since then. *Process-local*.
    static IN_VAIN: AtomicU32 = AtomicU32::new(0);
    static SINCE: AtomicU32 = AtomicU32::new(0);
    let chunks = channel.chunks();
    if !chunks.has_free(count) {
        bury(channel);
        let since = SINCE.fetch_add(1, Ordering::Relaxed);
        let doubt = IN_VAIN.load(Ordering::Relaxed);
        if chunks.used() >= FEW && since >= doubt {
            let look = || chunks.has_free(count).then_some(());
            let paid = bell::wait(&channel.memory, At::Chunks, Some(PATIENCE), look, || Ok(()));
            let paid = matches!(paid, Ok(Some(())));
            let doubt = if paid { 0 } else { (doubt * 2 + 1).min(255) };
            IN_VAIN.store(doubt, Ordering::Relaxed);
            SINCE.store(0, Ordering::Relaxed);
        }
    }
    chunks.take(channel.me(), count)
}

/// Frees what the dead had, now and then.
fn bury(channel: &Channel) {
    static LOOKED: AtomicU64 = AtomicU64::new(0);
    let now = clock::now().as_millis() as u64;
    let last = LOOKED.load(Ordering::Relaxed);
    if channel.chunks().used() == 0 || now < last + LOOK_EVERY {
        return;
    }
    LOOKED.store(now, Ordering::Relaxed);
    let named = |tag, bytes: &[u8]| match tag {
        LONG => Place::parse(bytes).map_or_else(Vec::new, |place| place.runs),
        _ => Vec::new(),
    };
    free(channel, &channel.chunks_of_the_dead(named));
}

fn give_memory_back(channel: &Channel, runs: &[Run]) {
    for run in runs.iter().filter(|run| run.start + run.count > KEPT) {
        let (start, end) = (run.start.max(KEPT), run.start + run.count);
        if let Ok(file) = channel.file() {
            extent::punch(file, chunk_at(start), u64::from(end - start) * CHUNK);
        }
    }
}

/// Frees chunks that are this process's.
fn free(channel: &Channel, runs: &[Run]) {
    if !runs.is_empty() {
        give_memory_back(channel, runs);
        channel.chunks().free(runs);
        bell::ring(&channel.memory, At::Chunks, 1);
    }
}

/// What a record says.
struct Place {
    tag: u32,
    parts: Vec<(u64, bool)>,
    runs: Vec<Run>,
}

impl Place {
    fn parse(record: &[u8]) -> Option<Self> {
        let word = |at: usize| -> Option<u64> {
            let bytes = record.get(at * 8..at * 8 + 8)?.try_into().ok()?;
            Some(u64::from_le_bytes(bytes))
        };
        let half = |word: u64| (word as u32, (word >> 32) as u32);
        let ((tag, parts), (runs, _)) = (half(word(0)?), half(word(1)?));
        let (parts, runs) = (parts as usize, runs as usize);
        if record.len() != (2 + parts + runs) * 8 || parts == 0 {
            return None;
        }
        Some(Self {
            tag,
            parts: (2..2 + parts)
                .map(|at| word(at).map(|len| (len & !READONLY, len & READONLY != 0)))
                .collect::<Option<_>>()?,
            runs: (2 + parts..2 + parts + runs)
                .map(|at| {
                    let (start, count) = half(word(at)?);
                    Some(Run { start, count })
                })
                .collect::<Option<_>>()?,
        })
    }
}

/// Where a part is copied to.
enum Into {
    Lent(Lent),
    Bytes(BytesInMaking),
    Array(ArrayInMaking),
}

impl Into {
    fn target(&mut self) -> Target<'_> {
        match self {
            Self::Lent(lent) => lent.target(),
            Self::Bytes(bytes) => bytes.target(0),
            Self::Array(array) => array.target(),
        }
    }

    fn finish<'py>(self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(match self {
            Self::Lent(lent) => Bound::new(py, lent)?.into_any(),
            Self::Bytes(bytes) => bytes.finish().into_bound(py).into_any(),
            Self::Array(array) => array.finish().into_bound(py).into_any(),
        })
    }
}

/// A long message that is being taken. *Process-local*; frees the chunks when it is dropped.
pub struct Taken {
    channel: Arc<Channel>,
    place: Place,
    into: Vec<Into>,
    is_mine: bool,
}

impl Taken {
    /// For the holder of `R_LOCK`, who has not moved on yet: memory for the message, so that it
    /// stays where it is if there is none, or no file to read it from. `None` if the record makes
    /// no sense.
    pub fn new(py: Python<'_>, channel: &Arc<Channel>, record: &[u8]) -> PyResult<Option<Self>> {
        let Some(place) = Place::parse(record) else {
            return Ok(None);
        };
        channel.file().map_err(os_error)?;
        let mut into = Vec::new();
        for (index, (len, readonly)) in place.parts.iter().enumerate() {
            let len = usize::try_from(*len).map_err(|_| no_memory())?;
            into.push(if index > 0 && !readonly {
                Into::Array(ArrayInMaking::new(py, len)?)
            } else if index == 0
                && place.tag == PICKLE
                && (LEAST..=MOST).contains(&len)
                && let Some(lent) = Lent::new(len)
            {
                Into::Lent(lent)
            } else {
                Into::Bytes(BytesInMaking::new(py, len)?)
            });
        }
        let mut taken = Self {
            channel: Arc::clone(channel),
            place,
            into,
            is_mine: false,
        };
        taken.is_mine = channel.chunks().own(channel.me(), &taken.place.runs);
        Ok(taken.is_mine.then_some(taken))
    }

    /// The object; to be called without any lock.
    pub fn read<'py>(mut self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let mut into = std::mem::take(&mut self.into);
        let copied = {
            let targets: Vec<_> = into.iter_mut().map(Into::target).collect();
            py.detach(|| self.copy(targets))
        };
        let tag = self.place.tag;
        drop(self); // others may use the memory while we unpickle
        copied.map_err(os_error)?;
        let mut objects = into.into_iter().map(|part| part.finish(py));
        let first = objects.next().unwrap_or_else(|| Err(no_memory()))?;
        if tag == BYTES {
            return Ok(first);
        }
        let buffers = objects.collect::<PyResult<Vec<_>>>()?;
        let buffers = match buffers.len() {
            0 => None,
            _ => Some(PyList::new(py, buffers)?),
        };
        loads(py, &first, buffers)
    }

    fn copy(&self, targets: Vec<Target<'_>>) -> nix::Result<()> {
        let file = self.channel.file()?;
        let mut start = 0;
        for mut target in targets {
            let len = target.len() as u64;
            let read = |at, _, len: u64| extent::read_at(file, at, target.take_first(len as usize));
            pieces(&self.place.runs, start, len, read)?;
            start += aligned(len);
        }
        Ok(())
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if self.is_mine {
            free(&self.channel, &self.place.runs);
        }
    }
}
