//! The receiver's side.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::word::{self, Held, SENDER};
use super::{CHUNK, LARGE, Table};
use crate::ipc::arena::Moment;
use crate::sys::fork;
use crate::sys::io;
use crate::sys::memory::system_memory;
use crate::sys::mutex::Mutex;
use crate::sys::segment::{Map, PAGE, Segment};

/// Mappings for reading that are kept: their page tables are made, which is most of the cost.
const KEPT_MAPS: usize = 1024;
const KEPT_BYTES: usize = 256 << 20;

/// How often it is looked whether what is withheld still has to be.
const REVIEWS: Duration = Duration::from_millis(100);

/// Why a reference cannot be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// There is no such message, or it has been taken, or what says where it is makes no sense.
    Corrupt,
    /// The receiver belongs to the process that this one was forked from.
    Foreign,
}

/// Takes the messages of one segment. *Process-local*; a forked child must make its own, under
/// another number. The mutex is held for instants.
#[derive(Debug)]
pub struct Receiver {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    segment: Arc<Segment>,
    table: Table,
    holder: u32,
    made_in: u32,
    /// how long the file was when we last looked
    file_len: AtomicUsize,
    /// messages that are held in whatever way
    held: AtomicUsize,
    /// private mappings that are held, and their bytes
    views: AtomicUsize,
    view_bytes: AtomicUsize,
    cache: Mutex<Cache>,
    withheld: Mutex<Withheld>,
}

/// Messages that this process does not look at any more, but a child of it may: one that was
/// forked while they were mapped. They are let go of when no such child lives.
#[derive(Debug, Default)]
struct Withheld {
    messages: Vec<(u16, Held, usize, Moment)>,
    reviewed: Option<Instant>,
}

/// Mappings by where they begin, each with the time of its last use.
#[derive(Debug, Default)]
struct Cache {
    maps: HashMap<usize, (Arc<Map>, u64)>,
    bytes: usize,
    time: u64,
}

impl Receiver {
    /// Receives as number `holder`, which nobody else does. `table` and `entries` as for the
    /// [`Pool`](super::Pool) of the segment.
    pub fn new(segment: Arc<Segment>, table: usize, entries: usize, holder: u32) -> Self {
        assert!(holder < SENDER);
        fork::pid(); // from now on forks are counted
        Self {
            inner: Arc::new(Inner {
                segment,
                table: Table::new(table, entries),
                holder,
                made_in: fork::generation(),
                file_len: AtomicUsize::new(0),
                held: AtomicUsize::new(0),
                views: AtomicUsize::new(0),
                view_bytes: AtomicUsize::new(0),
                cache: Mutex::default(),
                withheld: Mutex::default(),
            }),
        }
    }

    /// The message that `index` refers to. It is this holder's until it is dropped.
    pub fn take(&self, index: u32) -> Result<Taken, Refused> {
        let inner = &self.inner;
        if inner.is_foreign() {
            return Err(Refused::Foreign);
        }
        inner.review();
        let (entry, ending) = (index as u16, (index >> 16) as u16);
        if usize::from(entry) >= inner.table.entries {
            return Err(Refused::Corrupt);
        }
        let head = inner.segment.head();
        let word = head.u64(inner.table.word(entry));
        let held = word::take(word, ending, inner.holder).ok_or(Refused::Corrupt)?;
        let place = inner.table.place(entry);
        let [offset, capacity, len] = [0, 8, 16]
            .map(|at| usize::try_from(head.u64(place + at).load(Ordering::Relaxed)).unwrap_or(0));
        inner.held.fetch_add(1, Ordering::Relaxed);
        let taken = Taken {
            receiver: Arc::clone(inner),
            entry,
            held: Some(held),
            offset,
            capacity,
            len,
        };
        if inner.is_sound(offset, capacity, len) {
            Ok(taken)
        } else {
            Err(Refused::Corrupt)
        }
    }

    /// How many messages are held that were taken.
    pub fn held(&self) -> usize {
        self.inner.held.load(Ordering::Relaxed)
    }

    /// Whether so much is held in private mappings that more should be copied out: half of the
    /// entries, or a sixteenth of the machine's memory.
    pub fn is_pressed(&self) -> bool {
        self.inner.is_pressed()
    }
}

impl Inner {
    fn is_foreign(&self) -> bool {
        self.made_in != fork::generation()
    }

    fn is_pressed(&self) -> bool {
        let bytes = self.view_bytes.load(Ordering::Relaxed) as u64;
        self.views.load(Ordering::Relaxed) >= self.table.entries / 2 || bytes > system_memory() / 16
    }

    /// Whether nothing that is read there can be outside of the file, or in the head.
    fn is_sound(&self, offset: usize, capacity: usize, len: usize) -> bool {
        let aligned = if capacity < LARGE {
            offset % CHUNK + capacity <= CHUNK
        } else {
            offset.is_multiple_of(PAGE)
        };
        let (Some(end), Some(_)) = (offset.checked_add(len), offset.checked_add(capacity)) else {
            return false;
        };
        aligned && offset >= self.segment.head().len() && len <= capacity && self.reaches(end)
    }

    fn reaches(&self, end: usize) -> bool {
        if end <= self.file_len.load(Ordering::Relaxed) {
            return true;
        }
        let now = self.segment.file_len().unwrap_or(0);
        self.file_len.store(now, Ordering::Relaxed);
        end <= now
    }

    fn count_view(&self, len: usize) {
        self.views.fetch_add(1, Ordering::Relaxed);
        self.view_bytes.fetch_add(len, Ordering::Relaxed);
    }

    fn uncount_view(&self, len: usize) {
        self.views.fetch_sub(1, Ordering::Relaxed);
        self.view_bytes.fetch_sub(len, Ordering::Relaxed);
    }

    fn release(&self, entry: u16, held: Held) {
        word::release(self.segment.head().u64(self.table.word(entry)), held);
        self.held.fetch_sub(1, Ordering::Relaxed);
    }

    /// Lets go of a view's message, unless a forked child may look at it.
    fn let_go(&self, mut taken: Taken, since: Moment) {
        if self.is_foreign() {
            return;
        }
        if since.is_over() {
            self.uncount_view(taken.len);
        } else if let Some(held) = taken.held.take() {
            let message = (taken.entry, held, taken.len, since);
            self.withheld.lock().messages.push(message);
        }
        self.review();
    }

    /// Lets go of what was withheld and is seen by nobody any more.
    fn review(&self) {
        let Some(mut withheld) = self.withheld.try_lock() else {
            return;
        };
        let lately = |then: Instant| then.elapsed() < REVIEWS;
        if withheld.messages.is_empty() || withheld.reviewed.is_some_and(lately) {
            return;
        }
        withheld.reviewed = Some(Instant::now());
        withheld.messages.retain(|&(entry, held, len, ref since)| {
            let over = since.is_over();
            if over {
                self.uncount_view(len);
                self.release(entry, held);
            }
            !over
        });
    }

    /// The mapping of `[base, base + len)`, which is kept for the next message there.
    fn map(&self, base: usize, len: usize) -> nix::Result<Arc<Map>> {
        if let Some(map) = self.kept(base, len) {
            return Ok(map);
        }
        let map = Arc::new(self.segment.map_shared(base, len)?);
        let mut dropped = Vec::new(); // unmapped without the lock
        let mut cache = self.cache.lock();
        if len <= KEPT_BYTES {
            cache.time += 1;
            let entry = (Arc::clone(&map), cache.time);
            cache.bytes += len;
            dropped.extend(cache.maps.insert(base, entry));
            cache.bytes -= dropped.iter().map(|(map, _)| map.len()).sum::<usize>();
            while cache.maps.len() > KEPT_MAPS || cache.bytes > KEPT_BYTES {
                dropped.extend(cache.drop_oldest());
            }
        }
        drop(cache);
        Ok(map)
    }

    fn kept(&self, base: usize, len: usize) -> Option<Arc<Map>> {
        let mut cache = self.cache.lock();
        cache.time += 1;
        let time = cache.time;
        let (map, used) = cache.maps.get_mut(&base)?;
        *used = time;
        (map.len() >= len).then(|| Arc::clone(map))
    }
}

impl Cache {
    fn drop_oldest(&mut self) -> Option<(Arc<Map>, u64)> {
        let (&oldest, _) = self.maps.iter().min_by_key(|(_, (_, used))| *used)?;
        let entry = self.maps.remove(&oldest)?;
        self.bytes -= entry.0.len();
        Some(entry)
    }
}

/// A message that was taken. *Process-local*; dropping it lets the sender use the extent again. A
/// forked child that inherits one lets go of nothing.
#[derive(Debug)]
pub struct Taken {
    receiver: Arc<Inner>,
    entry: u16,
    /// none: it is withheld
    held: Option<Held>,
    offset: usize,
    capacity: usize,
    len: usize,
}

impl Taken {
    /// The length of the message in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[cfg(test)]
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// See [`Receiver::is_pressed`].
    pub fn is_pressed(&self) -> bool {
        self.receiver.is_pressed()
    }

    /// The first bytes of the message.
    pub fn start(&self, len: usize) -> nix::Result<Vec<u8>> {
        let len = len.min(self.len);
        let segment = &self.receiver.segment;
        match self.receiver.kept(self.offset, len) {
            Some(map) => Ok(map.bytes(0, len).to_vec()),
            None => segment.read_at(self.offset, len),
        }
    }

    /// To read the message where it is.
    pub fn shared(self) -> nix::Result<Shared> {
        let (base, len) = if self.capacity < LARGE {
            (self.offset / CHUNK * CHUNK, CHUNK)
        } else {
            (self.offset, self.capacity)
        };
        let map = self.receiver.map(base, len)?;
        Ok(Shared {
            start: self.offset - base,
            map,
            taken: self,
        })
    }

    /// To keep the message, and to write to it without anybody seeing that: a mapping that begins
    /// with the message's first byte. `EINVAL` for a small extent: what small messages are for is
    /// being copied.
    pub fn private(self) -> nix::Result<Private> {
        if self.capacity < LARGE {
            return Err(Errno::EINVAL);
        }
        let since = Moment::now()?;
        let len = self.len.next_multiple_of(PAGE).max(PAGE);
        let map = self.receiver.segment.map_private(self.offset, len)?;
        self.receiver.count_view(self.len);
        Ok(Private {
            view: Some((map, self, since)),
        })
    }

    /// A copy of the message; lets go of the extent. `ENOMEM` if there is no memory for it.
    pub fn copy_out(self) -> nix::Result<Vec<u8>> {
        if self.capacity >= LARGE && self.receiver.kept(self.offset, self.len).is_none() {
            return self.receiver.segment.read_at(self.offset, self.len);
        }
        let shared = self.shared()?;
        let mut copy = io::vec_with_room(shared.bytes().len())?;
        copy.extend_from_slice(shared.bytes());
        Ok(copy)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if let Some(held) = self.held
            && !self.receiver.is_foreign()
        {
            self.receiver.release(self.entry, held);
        }
    }
}

/// A message that is read where it is. *Process-local*, as [`Taken`].
#[derive(Debug)]
pub struct Shared {
    // before `taken`: nothing is looked at any more when the extent is let go of
    map: Arc<Map>,
    start: usize,
    taken: Taken,
}

impl Shared {
    pub fn bytes(&self) -> &[u8] {
        self.map.bytes(self.start, self.taken.len)
    }
}

/// A message in a private mapping. *Process-local*. A child that is forked meanwhile has the
/// mapping, too, so the extent is not used again before both have let go of it.
#[derive(Debug)]
pub struct Private {
    /// and when it began; none once it is dropped
    view: Option<(Map, Taken, Moment)>,
}

impl Private {
    fn view(&self) -> &(Map, Taken, Moment) {
        self.view.as_ref().expect("there until it is dropped")
    }

    /// Where the message begins.
    pub fn address(&self) -> usize {
        self.view().0.address()
    }

    pub fn bytes(&self) -> &[u8] {
        let (map, taken, _) = self.view();
        map.bytes(0, taken.len)
    }

    #[cfg(test)]
    pub fn taken_offset(&self) -> usize {
        self.view().1.offset
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        if let Some((map, taken, since)) = self.view.take() {
            drop(map);
            let receiver = Arc::clone(&taken.receiver);
            receiver.let_go(taken, since);
        }
    }
}
