//! Where shared objects live: segments of anonymous memory, and the blocks in them.
//!
//! ```text
//!  common segment                           single segment (a block of 1 MiB and more)
//!  0      head: magic, id, size             0     head
//!  64     family table (see `family`)       4096  the block
//!  12 KiB blocks, in lines of 64 bytes
//! ```
//! A segment is *process-shared*. Blocks of a common segment are given out by the process that
//! made it, and by no other: a forked child treats what it inherits as foreign (uses it, never
//! gives out of it) and makes segments of its own.
//!
//! What a process knows of segments is *process-local*, behind one lock that is held across
//! `fork`, so that the child inherits it complete; the child's part in the fork is to keep its
//! promises in the family tables.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Once, Weak};

use nix::errno::Errno;

use super::family::{Promise, Table, World};
use super::heap::{self, Heap, Spot};
use crate::sys::clock;
use crate::sys::extent;
use crate::sys::fork::{self, ForkLock};
use crate::sys::io::Target;
use crate::sys::life;
use crate::sys::memory::{self, BytesRef, LINE, LineRef, Mapping, PAGE, WordsRef};

const MAGIC: u64 = u64::from_le_bytes(*b"billiard");
/// Bytes at the start of a common segment that hold its head and table (500 entries).
const COMMON_HEAD: usize = 3 * PAGE;
const SINGLE_HEAD: usize = PAGE;
/// Blocks from this size on get a segment of their own.
pub const SINGLE: usize = 1 << 20;

const HEAD_MAGIC: usize = 0;
const HEAD_ID: usize = 1;
const HEAD_SIZE: usize = 3;
const HEAD_KIND: usize = 4;

/// What a segment is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// One block.
    Single = 0,
    /// Many blocks.
    Common = 1,
    /// One block, and a file behind it that grows.
    Growable = 2,
}

impl Kind {
    fn of(number: u64) -> nix::Result<Self> {
        match number {
            0 => Ok(Self::Single),
            1 => Ok(Self::Common),
            2 => Ok(Self::Growable),
            _ => Err(Errno::EINVAL),
        }
    }
}

/// One mapped segment. *Process-local* handle; inherited by a forked child.
#[derive(Debug)]
pub struct Segment {
    mapping: Arc<Mapping>,
    id: u128,
    kind: Kind,
    /// the fork generation of the process that gives out its blocks, if that is or was us
    maker: Option<u32>,
}

impl Segment {
    fn create(len: usize, kind: Kind) -> nix::Result<Self> {
        // The names are for people who look at /proc/PID/fd.
        let mapping = match kind {
            Kind::Common => Mapping::create(c"billiard-arena", len)?,
            Kind::Single => Mapping::create(c"billiard-block", len)?,
            Kind::Growable => Mapping::create_growable(c"billiard-queue", len)?,
        };
        let id = memory::random_id()?;
        let head = mapping.line(0);
        head[HEAD_ID].store(id as u64, Ordering::Relaxed);
        head[HEAD_ID + 1].store((id >> 64) as u64, Ordering::Relaxed);
        head[HEAD_SIZE].store(len as u64, Ordering::Relaxed);
        head[HEAD_KIND].store(kind as u64, Ordering::Relaxed);
        head[HEAD_MAGIC].store(MAGIC, Ordering::Release);
        Ok(Self {
            mapping: Arc::new(mapping),
            id,
            kind,
            maker: Some(fork::generation()),
        })
    }

    fn adopt(fd: i32, id: u128) -> nix::Result<Self> {
        let fd = memory::take_over(fd)?;
        let mut head = [0; LINE];
        extent::read_at(fd.as_raw_fd(), 0, Target::from(&mut head[..]))?;
        let word = |index: usize| {
            let bytes = head[index * 8..][..8].try_into();
            u64::from_ne_bytes(bytes.expect("eight bytes"))
        };
        let there = u128::from(word(HEAD_ID)) | u128::from(word(HEAD_ID + 1)) << 64;
        let size = usize::try_from(word(HEAD_SIZE)).map_err(|_| Errno::EINVAL)?;
        if word(HEAD_MAGIC) != MAGIC || there != id || size < PAGE {
            return Err(Errno::EINVAL);
        }
        Ok(Self {
            mapping: Arc::new(Mapping::adopt(fd, size)?),
            id,
            kind: Kind::of(word(HEAD_KIND))?,
            maker: None,
        })
    }

    /// Names the segment in all processes.
    pub fn id(&self) -> u128 {
        self.id
    }

    /// The descriptor; `EBADF` if the program closed it behind our back.
    pub fn fd(&self) -> nix::Result<i32> {
        self.mapping.fd()
    }

    /// Closes the descriptor of a segment that has one user, who needs it no more.
    pub fn close_fd(&self) {
        self.mapping.close_fd();
    }

    pub fn len(&self) -> usize {
        self.mapping.len()
    }

    pub fn is_empty(&self) -> bool {
        false
    }

    /// Whether this process gives out its blocks.
    fn is_ours(&self) -> bool {
        self.maker == Some(fork::generation())
    }

    /// Zeroes bytes that nobody uses.
    pub fn zero(&self, offset: usize, len: usize) {
        self.mapping.zero(offset, len);
    }

    fn head(&self) -> usize {
        if self.kind == Kind::Common {
            COMMON_HEAD
        } else {
            SINGLE_HEAD
        }
    }

    /// The descendants that see it; only common segments are given out in parts.
    pub fn table(&self) -> Option<Table<'_, AtomicU64>> {
        (self.kind == Kind::Common)
            .then(|| Table::new(self.mapping.words(LINE, (COMMON_HEAD - LINE) / 8)))
    }
}

/// A block of shared memory. *Process-local* handle of *process-shared* bytes.
///
/// Dropped in the process that made it, the bytes are used again as soon as no descendant can see
/// them; dropped elsewhere, nothing happens to them.
#[derive(Debug)]
pub struct Block {
    segment: Arc<Segment>,
    offset: usize,
    size: usize,
    /// class and epoch of a block that goes back to the heap
    lot: Option<(usize, u64)>,
}

impl Block {
    /// A block of at least one byte; all zero. Untouched pages of big ones cost nothing.
    pub fn new(size: usize) -> nix::Result<Self> {
        install();
        if size >= SINGLE {
            return Self::alone(size, Kind::Single);
        }
        STATE.lock().alloc(size)
    }

    /// A block in a segment of its own whose file can grow: see `sys::extent`.
    pub fn growable(size: usize) -> nix::Result<Self> {
        install();
        Self::alone(size, Kind::Growable)
    }

    fn alone(size: usize, kind: Kind) -> nix::Result<Self> {
        let len = size
            .checked_add(SINGLE_HEAD + PAGE - 1)
            .ok_or(Errno::ENOMEM)?
            / PAGE
            * PAGE;
        let segment = Arc::new(Segment::create(len, kind)?);
        if kind == Kind::Single {
            STATE.lock().know(&segment, Vec::new());
        }
        Ok(Self {
            segment,
            offset: SINGLE_HEAD,
            size,
            lot: None,
        })
    }

    /// A block that another process gave out.
    pub fn foreign(segment: Arc<Segment>, offset: usize, size: usize) -> nix::Result<Self> {
        let end = offset.checked_add(size).ok_or(Errno::EINVAL)?;
        if offset < segment.head() || end > segment.len() || !offset.is_multiple_of(LINE) {
            return Err(Errno::EINVAL);
        }
        Ok(Self {
            segment,
            offset,
            size,
            lot: None,
        })
    }

    pub fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }

    pub fn offset(&self) -> usize {
        self.offset
    }

    pub fn size(&self) -> usize {
        self.size
    }

    /// Where this process sees the block; valid for as long as the block is held.
    pub fn address(&self) -> std::ptr::NonNull<u8> {
        self.segment.mapping.address(self.offset, self.size)
    }

    /// The line of words that the block starts with.
    pub fn line(&self) -> LineRef {
        LineRef::new(&self.segment.mapping, self.offset)
    }

    /// The line of words at byte `offset` of the block.
    pub fn line_at(&self, offset: usize) -> LineRef {
        assert!(offset <= self.size && LINE <= self.size - offset);
        LineRef::new(&self.segment.mapping, self.offset + offset)
    }

    /// `count` words of the block from byte `offset` on.
    pub fn words(&self, offset: usize, count: usize) -> WordsRef {
        assert!(offset <= self.size && count * 8 <= self.size - offset);
        WordsRef::new(&self.segment.mapping, self.offset + offset, count)
    }

    /// `len` bytes of the block from byte `offset` on.
    pub fn bytes(&self, offset: usize, len: usize) -> BytesRef {
        assert!(offset <= self.size && len <= self.size - offset);
        BytesRef::new(&self.segment.mapping, self.offset + offset, len)
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Some((class, created)) = self.lot
            && self.segment.is_ours()
        {
            let spot = Spot {
                segment: Arc::clone(&self.segment),
                offset: self.offset,
            };
            STATE.lock().free(spot, class, created);
        }
    }
}

/// A segment on its way to a process that is being started. *Process-local*; dropping it in the
/// process that made it ends the wait for the child (see `family`).
#[derive(Debug)]
pub struct Loan {
    segment: Arc<Segment>,
    promises: Vec<Promise>,
    made_in: u32,
}

impl Loan {
    pub fn new(segment: &Arc<Segment>) -> Self {
        let promises = STATE.lock().promise(segment, true);
        Self {
            segment: Arc::clone(segment),
            promises,
            made_in: fork::generation(),
        }
    }

    pub fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }

    /// What the child has to know to keep the promises.
    pub fn promises(&self) -> &[Promise] {
        &self.promises
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        if self.made_in == fork::generation()
            && let Some(table) = self.segment.table()
        {
            for promise in &self.promises {
                table.drop_promise(*promise, &System);
            }
        }
    }
}

/// Maps a segment that was lent to this process, once: later calls find it. Takes `fd` over.
pub fn borrow(id: u128, fd: i32, promises: &[Promise]) -> nix::Result<Arc<Segment>> {
    install();
    let mut state = STATE.lock();
    let segment = match state.find(id) {
        Some(segment) => {
            if segment.mapping.fd() != Ok(fd) {
                drop(memory::take_over(fd));
            }
            segment
        }
        None => Arc::new(Segment::adopt(fd, id)?),
    };
    if let Some(table) = segment.table() {
        for promise in promises {
            if !table.keep(*promise, fork::pid()) {
                let again = table.promise(fork::pid(), promise.birth, false, &System);
                again.map(|promise| table.keep(promise, fork::pid()));
            }
        }
    }
    // Whoever borrows a growable one has it for himself, with a descriptor of his own.
    if segment.kind != Kind::Growable {
        let births = promises.iter().map(|promise| promise.birth).collect();
        state.know(&segment, births);
    }
    Ok(segment)
}

/// A moment in the life of this process, to know later who has branched off since: for memory that
/// is not in the arena, but that a forked child sees all the same. *Process-local*.
#[derive(Debug)]
pub struct Moment {
    segment: Arc<Segment>,
    epoch: u64,
}

impl Moment {
    pub fn now() -> nix::Result<Self> {
        install();
        let mut known = STATE.lock().moment();
        if known.is_none() {
            let block = Block::new(1)?; // in a segment whose table takes note from now on
            known = STATE.lock().moment();
            drop(block);
        }
        known.ok_or(Errno::ENOMEM)
    }

    /// Whether no living process has branched off since.
    pub fn is_over(&self) -> bool {
        let now = STATE.lock().epoch;
        now == self.epoch
            || self
                .segment
                .table()
                .and_then(|table| table.living(&System))
                .is_some_and(|living| living.cannot_see(self.epoch, now))
    }
}

/// The real world, for family tables.
struct System;

impl World for System {
    fn exists(&self, pid: u32) -> bool {
        life::exists(pid)
    }
    fn now(&self) -> u64 {
        clock::now().as_secs()
    }
}

/// A segment that this process has mapped, and through which births it sees it.
#[derive(Debug)]
struct Known {
    segment: Weak<Segment>,
    births: Vec<u64>,
}

#[derive(Debug)]
struct State {
    known: Vec<Known>,
    /// promises of the fork that is under way, and whether the segment was ours
    promised: Vec<(Arc<Segment>, Promise, bool)>,
    /// counts the lines that branched off from this process
    epoch: u64,
    heap: Heap,
    /// the fork generation of the process whose heap it is
    heap_of: u32,
}

static STATE: ForkLock<State> = ForkLock::new(State {
    known: Vec::new(),
    promised: Vec::new(),
    epoch: 0,
    heap: Heap::empty(),
    heap_of: 0,
});

fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        fork::pid(); // its handler has to be the first
        fork::on_fork(before_fork, after_in_parent, after_in_child);
    });
}

extern "C" fn before_fork() {
    STATE.hold();
    STATE.with_held(State::before_fork);
}

extern "C" fn after_in_parent() {
    STATE.with_held(|state| state.promised.clear());
    STATE.let_go();
}

extern "C" fn after_in_child() {
    STATE.with_held(State::after_in_child);
    STATE.let_go();
}

impl State {
    fn find(&self, id: u128) -> Option<Arc<Segment>> {
        self.known
            .iter()
            .filter_map(|known| known.segment.upgrade())
            .find(|s| s.id == id)
    }

    fn moment(&self) -> Option<Moment> {
        let segments = self
            .known
            .iter()
            .filter_map(|known| known.segment.upgrade());
        segments
            .into_iter()
            .find(|segment| segment.kind == Kind::Common && segment.is_ours())
            .map(|segment| Moment {
                segment,
                epoch: self.epoch,
            })
    }

    /// Notes that the segment is mapped here, and seen through these births too.
    fn know(&mut self, segment: &Arc<Segment>, births: Vec<u64>) {
        self.known.retain(|known| known.segment.strong_count() > 0);
        let weak = Arc::downgrade(segment);
        match self
            .known
            .iter_mut()
            .find(|known| known.segment.ptr_eq(&weak))
        {
            Some(known) => {
                known.births.extend(births);
                known.births.sort_unstable();
                known.births.dedup();
            }
            None => self.known.push(Known {
                segment: weak,
                births,
            }),
        }
    }

    /// Announces a child in the table of `segment`, through every birth that it will see it by.
    fn promise(&mut self, segment: &Arc<Segment>, held: bool) -> Vec<Promise> {
        let Some(table) = segment.table() else {
            return Vec::new();
        };
        let births = if segment.is_ours() {
            self.epoch += 1;
            vec![self.epoch - 1]
        } else {
            let weak = Arc::downgrade(segment);
            let known = self.known.iter().find(|known| known.segment.ptr_eq(&weak));
            known.map_or_else(Vec::new, |known| known.births.clone())
        };
        births
            .into_iter()
            .filter_map(|birth| table.promise(fork::pid(), birth, held, &System))
            .collect()
    }

    fn before_fork(&mut self) {
        let segments: Vec<_> = self
            .known
            .iter()
            .filter_map(|k| k.segment.upgrade())
            .collect();
        for segment in segments {
            let ours = segment.is_ours();
            for promise in self.promise(&segment, false) {
                self.promised.push((Arc::clone(&segment), promise, ours));
            }
        }
    }

    fn after_in_child(&mut self) {
        for (segment, promise, was_ours) in std::mem::take(&mut self.promised) {
            if let Some(table) = segment.table() {
                table.keep(promise, fork::pid());
            }
            if was_ours {
                self.know(&segment, vec![promise.birth]);
            }
        }
    }

    /// The heap; a forked child abandons what it inherited, and begins a new one.
    fn heap(&mut self) -> &mut Heap {
        if self.heap_of != fork::generation() {
            self.heap = Heap::empty();
            self.heap_of = fork::generation();
        }
        &mut self.heap
    }

    fn alloc(&mut self, size: usize) -> nix::Result<Block> {
        let class = heap::class_of(size);
        let spot = match self.heap().take(class) {
            Some(spot) => spot,
            None => self.fresh(class)?,
        };
        let Spot { segment, offset } = spot;
        Ok(Block {
            segment,
            offset,
            size,
            lot: Some((class, self.epoch)),
        })
    }

    /// A spot that was withheld until now, or the first one of a new segment.
    fn fresh(&mut self, class: usize) -> nix::Result<Spot> {
        let heap = self.heap();
        heap.review(&System);
        if let Some(spot) = heap.take(class) {
            return Ok(spot);
        }
        let least = (COMMON_HEAD + heap::class_size(class)).next_power_of_two();
        let segment = Arc::new(Segment::create(heap.next_len().max(least), Kind::Common)?);
        heap.open(Arc::clone(&segment), COMMON_HEAD);
        self.know(&segment, Vec::new());
        self.heap().take(class).ok_or(Errno::ENOMEM)
    }

    fn free(&mut self, spot: Spot, class: usize, created: u64) {
        let freed = self.epoch;
        self.heap().put(spot, class, created, freed, &System);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn blocks_do_not_overlap_and_are_zero() {
        let blocks: Vec<_> = (1..200).map(|n| Block::new(n * 37).unwrap()).collect();
        let mut ranges: Vec<_> = blocks
            .iter()
            .map(|b| (b.address().as_ptr() as usize, b.size()))
            .collect();
        ranges.sort_unstable();
        assert!(ranges.windows(2).all(|w| w[0].0 + w[0].1 <= w[1].0));
        for block in &blocks {
            assert_eq!(block.line()[0].swap(1, Ordering::Relaxed), 0);
        }
    }

    #[test]
    fn what_is_freed_is_used_again_and_zero() {
        for _ in 0..100_000 {
            let block = Block::new(100).unwrap();
            assert_eq!(block.line()[0].swap(7, Ordering::Relaxed), 0);
        }
        assert!(STATE.lock().known.len() < 50);
    }

    #[test]
    fn a_big_block_has_a_segment_of_its_own_that_goes_with_it() {
        let block = Block::new(80_000_000).unwrap();
        let segment = Arc::downgrade(block.segment());
        assert_eq!(block.line()[0].load(Ordering::Relaxed), 0);
        drop(block);
        assert!(segment.upgrade().is_none());
    }

    #[test]
    fn a_foreign_block_has_to_lie_in_its_segment() {
        let block = Block::new(64).unwrap();
        let segment = block.segment();
        for (offset, size) in [
            (0, 64),
            (block.offset() + 1, 64),
            (usize::MAX, 64),
            (64, usize::MAX),
        ] {
            assert_eq!(
                Block::foreign(Arc::clone(segment), offset, size).unwrap_err(),
                Errno::EINVAL
            );
        }
        assert!(Block::foreign(Arc::clone(segment), block.offset(), 64).is_ok());
    }
}
