//! The sender's side.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::room::{Room, Spot};
use super::{Table, reference, word};
use crate::sys::fork;
use crate::sys::io::Source;
use crate::sys::memory::system_memory;
use crate::sys::mutex::Mutex;
use crate::sys::segment::Segment;

/// How many bytes of extents there may be.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// On their way or with receivers. One message may always be lent, whatever its size.
    pub lent: usize,
    /// Kept for the next messages. What is above is given back to the system.
    pub idle: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            lent: usize::try_from(system_memory() / 2).unwrap_or(usize::MAX),
            idle: usize::try_from(system_memory() / 32).map_or(MOST_IDLE, |n| n.min(MOST_IDLE)),
        }
    }
}

const MOST_IDLE: usize = 256 << 20;

/// How long a sender waits for a receiver that gives extents back, and how often it looks.
const PATIENCE: Duration = Duration::from_millis(3);
const GLANCE: Duration = Duration::from_micros(200);

/// Gives out the extents of a segment. *Process-local*, behind a mutex that is held for instants
/// (and for the making of a chunk). A forked child has no use for it: it gets no extents, and what
/// it drops stays as it is.
#[derive(Debug)]
pub struct Pool {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    segment: Arc<Segment>,
    table: Table,
    lent: AtomicUsize,
    idle: usize,
    made_in: u32,
    book: Mutex<Book>,
}

#[derive(Debug)]
struct Book {
    room: Room,
    entries: Vec<Entry>,
    /// entries that nobody uses
    free: Vec<u16>,
    /// entries of messages that were sent and are not known to be back
    out: Vec<u16>,
    /// bytes that are being written or out
    lent: usize,
    /// an extent has come back, and nobody has waited for another in vain since
    returning: bool,
}

impl Book {
    fn free_entry(&mut self, entry: u16, spot: &Spot) {
        self.lent -= spot.capacity;
        self.free.push(entry);
    }
}

#[derive(Debug, Default)]
struct Entry {
    generation: u32,
    spot: Option<Spot>,
}

impl Pool {
    /// The extents of `segment` from byte `start` of the file on. Its head has a table of
    /// `entries` at byte `table`, all zero: [`table_size`](super::table_size) bytes.
    pub fn new(segment: Arc<Segment>, table: usize, entries: usize, start: usize) -> Self {
        Self::with_bounds(segment, table, entries, start, Bounds::default())
    }

    pub fn with_bounds(
        segment: Arc<Segment>,
        table: usize,
        entries: usize,
        start: usize,
        bounds: Bounds,
    ) -> Self {
        let book = Book {
            room: Room::new(start),
            entries: (0..entries).map(|_| Entry::default()).collect(),
            free: (0..entries).rev().map(|entry| entry as u16).collect(),
            out: Vec::new(),
            lent: 0,
            returning: false,
        };
        fork::pid(); // from now on forks are counted
        let inner = Inner {
            segment,
            table: Table::new(table, entries),
            lent: AtomicUsize::new(bounds.lent),
            idle: bounds.idle,
            made_in: fork::generation(),
            book: Mutex::new(book),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Changes [`Bounds::lent`].
    pub fn set_limit(&self, bytes: usize) {
        self.inner.lent.store(bytes, Ordering::Relaxed);
    }

    /// An extent of at least `len` bytes, one whose memory is warm if there is one.
    ///
    /// `None`: every entry is in use, or too many bytes are. An error: the system has no memory
    /// (for a large extent that shows when it is written).
    pub fn allocate(&self, len: usize) -> nix::Result<Option<Extent>> {
        let inner = &self.inner;
        if inner.is_foreign() {
            return Ok(None);
        }
        let mut book = inner.book.lock();
        let (limit, size) = (inner.lent.load(Ordering::Relaxed), Room::capacity(len));
        let too_much = |book: &Book| book.lent > 0 && book.lent.saturating_add(size) > limit;
        let mut excess = Vec::new();
        if book.free.is_empty() || too_much(&book) || !book.room.has_idle(len) {
            excess = inner.sweep(&mut book);
        }
        let extent = if book.free.is_empty() || too_much(&book) {
            Ok(None)
        } else {
            book.room.take(len, &inner.segment).map(|spot| {
                let entry = book.free.pop().expect("one is free");
                book.lent += spot.capacity;
                Some(Extent {
                    pool: Arc::clone(inner),
                    entry,
                    len,
                    spot: Some(spot),
                    failed: false,
                })
            })
        };
        drop(book);
        inner.retire(excess);
        extent
    }

    /// Waits for a moment where new memory would be needed while a receiver keeps giving extents
    /// back: the next that it gives back costs less, and so long it has the processor to itself.
    pub fn wait_for_return(&self, len: usize) {
        let start = Instant::now();
        while self.is_returning(len) {
            if start.elapsed() > PATIENCE {
                self.inner.book.lock().returning = false;
                break;
            }
            std::thread::sleep(GLANCE);
        }
    }

    /// Whether nothing that is idle has room for `len` bytes, and something that is out soon may.
    pub(super) fn is_returning(&self, len: usize) -> bool {
        let inner = &self.inner;
        if inner.is_foreign() {
            return false;
        }
        let mut book = inner.book.lock();
        let excess = inner.sweep(&mut book);
        let returning = book.returning && !book.out.is_empty() && !book.room.has_idle(len);
        drop(book);
        inner.retire(excess);
        returning
    }

    /// Frees a message that was sent and that nobody will take, because what named it is lost or
    /// was withdrawn. False if somebody has taken it.
    pub fn discard(&self, index: u32) -> bool {
        let inner = &self.inner;
        let entry = index as u16;
        if inner.is_foreign() || usize::from(entry) >= inner.table.entries {
            return false;
        }
        let generation = inner.book.lock().entries[usize::from(entry)].generation;
        let word = inner.segment.head().u64(inner.table.word(entry));
        reference(entry, generation) == index && word::recall(word, generation)
    }

    /// Everything that a dead holder still held is free again. Before another gets its number.
    pub fn reclaim(&self, holder: u32) {
        let inner = &self.inner;
        if inner.is_foreign() {
            return;
        }
        for entry in 0..inner.table.entries {
            let word = inner.segment.head().u64(inner.table.word(entry as u16));
            word::reclaim(word, holder);
        }
        self.collect();
    }

    /// Those who have messages that were taken, each once.
    pub fn holders(&self) -> Vec<u32> {
        let inner = &self.inner;
        let words = (0..inner.table.entries)
            .map(|entry| inner.segment.head().u64(inner.table.word(entry as u16)));
        let mut holders: Vec<_> = words.filter_map(word::holder).collect();
        holders.sort_unstable();
        holders.dedup();
        holders.retain(|&holder| holder != word::SENDER);
        holders
    }

    /// Looks for what has come back, and gives memory back that is not needed. Otherwise that
    /// happens when the next message needs room.
    pub fn collect(&self) {
        let inner = &self.inner;
        if inner.is_foreign() {
            return;
        }
        let excess = inner.sweep(&mut inner.book.lock());
        inner.retire(excess);
    }

    /// Gives idle memory above so many bytes back to the system, for when there may be nothing to
    /// send for a while.
    pub fn trim(&self, idle_bytes: usize) {
        let inner = &self.inner;
        if inner.is_foreign() {
            return;
        }
        let mut book = inner.book.lock();
        let mut excess = inner.sweep(&mut book);
        excess.extend(book.room.trim(idle_bytes));
        drop(book);
        inner.retire(excess);
    }

    /// Bytes of extents that are being written, on their way or with receivers.
    pub fn lent(&self) -> usize {
        if self.inner.is_foreign() {
            return 0;
        }
        self.inner.book.lock().lent
    }
}

impl Inner {
    fn is_foreign(&self) -> bool {
        self.made_in != fork::generation()
    }

    /// Takes back every extent that was let go of. Returns what is to be [retired](Self::retire).
    fn sweep(&self, book: &mut Book) -> Vec<Spot> {
        let mut excess = Vec::new();
        let mut index = 0;
        while index < book.out.len() {
            let entry = book.out[index];
            let generation = book.entries[usize::from(entry)].generation;
            let word = self.segment.head().u64(self.table.word(entry));
            if word::is_back(word, generation) {
                book.out.swap_remove(index);
                book.returning = true;
                let spot = book.entries[usize::from(entry)].spot.take();
                excess.extend(self.put(book, entry, spot.expect("it was out")));
            } else {
                index += 1;
            }
        }
        excess
    }

    fn put(&self, book: &mut Book, entry: u16, spot: Spot) -> Vec<Spot> {
        book.free_entry(entry, &spot);
        book.room.put(spot, self.idle)
    }

    /// Gives memory back to the system; not under the lock, as it takes its time.
    fn retire(&self, excess: Vec<Spot>) {
        for spot in excess {
            drop(spot.map);
            self.segment.punch(spot.offset, spot.capacity);
            self.book.lock().room.vacate(spot.offset, spot.capacity);
        }
    }
}

/// Room for a message, to be written and then sent. *Process-local*; freed when it is dropped
/// before it was sent.
#[derive(Debug)]
pub struct Extent {
    pool: Arc<Inner>,
    entry: u16,
    len: usize,
    spot: Option<Spot>,
    /// there was no memory for all of it: what there is goes back at once
    failed: bool,
}

impl Extent {
    /// As many bytes as were asked for.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[cfg(test)]
    pub fn is_mapped(&self) -> bool {
        self.spot.as_ref().is_some_and(|spot| spot.map.is_some())
    }

    /// Copies `bytes` to `offset`; an error if the system has no memory.
    pub fn write<'a>(&mut self, offset: usize, bytes: impl Into<Source<'a>>) -> nix::Result<()> {
        let bytes = bytes.into();
        assert!(offset <= self.len && bytes.len() <= self.len - offset);
        let written = self.put(offset, bytes);
        self.failed |= written.is_err();
        written
    }

    fn put(&mut self, offset: usize, bytes: Source<'_>) -> nix::Result<()> {
        let segment = &self.pool.segment;
        let spot = self.spot.as_mut().expect("held until it is sent");
        if spot.map.is_none() && spot.used {
            // Where the last message did not reach there are no pages yet.
            segment.reserve(spot.offset, spot.offset + spot.capacity)?;
            // No address space left is no reason to fail.
            if let Ok(map) = segment.map_shared(spot.offset, spot.capacity) {
                map.prefault();
                spot.map = Some(Arc::new(map));
            }
        }
        match &spot.map {
            Some(map) => {
                map.copy_in(spot.offset - spot.base + offset, bytes);
                Ok(())
            }
            None => segment.write_at(spot.offset + offset, bytes),
        }
    }

    /// Sends it: returns the reference with which a receiver takes it. Every byte of its length
    /// must have been written.
    pub fn into_index(mut self) -> u32 {
        let pool = Arc::clone(&self.pool);
        let head = pool.segment.head();
        let mut spot = self.spot.take().expect("held until it is sent");
        spot.used = true;
        let place = pool.table.place(self.entry);
        for (index, value) in [spot.offset, spot.capacity, self.len]
            .into_iter()
            .enumerate()
        {
            head.u64(place + index * 8)
                .store(value as u64, Ordering::Relaxed);
        }
        let mut book = pool.book.lock();
        let entry = &mut book.entries[usize::from(self.entry)];
        entry.generation = entry.generation.wrapping_add(1);
        entry.spot = Some(spot);
        let generation = entry.generation;
        book.out.push(self.entry);
        word::send(head.u64(pool.table.word(self.entry)), generation);
        reference(self.entry, generation)
    }
}

impl Drop for Extent {
    fn drop(&mut self) {
        if let Some(mut spot) = self.spot.take()
            && !self.pool.is_foreign()
        {
            spot.used = true;
            let excess = if self.failed {
                self.pool.book.lock().free_entry(self.entry, &spot);
                vec![spot]
            } else {
                self.pool.put(&mut self.pool.book.lock(), self.entry, spot)
            };
            self.pool.retire(excess);
        }
    }
}
