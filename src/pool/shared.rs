//! What a pool and its workers share: one segment for all (`Common`), one for each worker (`Lane`).
//!
//! *Process-shared* memory behind *process-local* handles. A forked worker inherits the mappings, a
//! spawned one makes its own from the descriptors. Nobody stores a pointer in it.
//!
//! ```text
//!  Common   bell │ head of the ring │ exit │ beds made │ who sleeps │ begun, ready │ beds │ words of the ring │ slots │ extents
//!  Lane     lease │ soft │ retire │ accepted at, done, up │ room │ cursors │ result ring │ extents
//! ```
//!
//! | word | written by | read by |
//! | --- | --- | --- |
//! | bell | everybody (`ipc/bell.rs`) | who sleeps in the pool's process |
//! | head, words of the ring | `ipc/claim.rs` | |
//! | beds made | the pool: no worker has an index above | who looks for sleepers |
//! | exit | the pool, once: no task will come any more | idle workers |
//! | begun | the pool, once: all of its first workers are to begin | those of them that no CPU was free for |
//! | ready | workers: how many of them have become ready | the pool, when one has ended |
//! | who sleeps, beds | `ipc/sleepers.rs` | |
//! | lease | `ipc/lease.rs` | |
//! | soft | the pool: the task whose soft limit has passed | the worker's signal handler |
//! | retire | the pool: take no more tasks | the worker, after every claim |
//! | accepted at | the worker, before its lease says so (nanoseconds, monotonic) | the pool |
//! | up | the worker, once: it is ready for tasks | the pool, when it has ended |
//! | done | the worker: how many outcomes it has reported | who asks how many |
//! | room | the worker: 1 when it waits for room in its ring; the pool clears and wakes | both |

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::errno::Errno;

use crate::ipc::claim::Words;
use crate::ipc::extents::table_size;
use crate::ipc::ring::Store;
use crate::ipc::sleepers::Beds;
use crate::sys::futex;
use crate::sys::segment::Segment;

/// Slots of the task ring. More tasks than workers have to be ready for them: between two looks
/// of the pool's process a worker may do hundreds of small ones.
pub const SLOTS: usize = 1024;
/// Bytes of a slot, head included. A call of a function with a few plain arguments fits.
pub const SLOT: usize = 256;
/// Workers that a pool may have at one time.
pub const WORKERS: usize = 4096;

/// How long a worker waits for the pool to be made.
const PATIENCE: Duration = Duration::from_millis(100);

const LINE: usize = 64;
const BELL: usize = 0;
const HEAD: usize = LINE;
const EXIT: usize = 2 * LINE;
const MANY: usize = 3 * LINE;
const ASLEEP: usize = 4 * LINE;
const BEGUN: usize = ASLEEP + WORKERS / 8;
const READY: usize = BEGUN + 8;
const BEDS: usize = 4096;
const _: () = assert!(READY < BEDS);
const WORDS: usize = BEDS + WORKERS * 8;
const DATA: usize = WORDS + SLOTS * 8;
/// Where the table of extents begins in `Common`.
pub const COMMON_TABLE: usize = DATA + SLOTS * SLOT;
/// Extents that tasks may be in at one time.
pub const COMMON_EXTENTS: usize = 2048;
const COMMON_SIZE: usize = (COMMON_TABLE + table_size(COMMON_EXTENTS)).next_multiple_of(4096);

const LEASE: usize = 0;
const SOFT: usize = LINE;
const RETIRE: usize = 2 * LINE;
const ACCEPTED_AT: usize = 3 * LINE;
const DONE: usize = ACCEPTED_AT + 8;
const UP: usize = ACCEPTED_AT + 16;
const ROOM: usize = 4 * LINE;
const RING_HEAD: usize = 5 * LINE;
const RING_TAIL: usize = 6 * LINE;
const RING_DATA: usize = 4096;
/// Bytes of a result ring.
pub const RING: usize = 256 << 10;
/// Where the table of extents begins in a lane.
pub const LANE_TABLE: usize = RING_DATA + RING;
/// Extents that results of one worker may be in at one time.
pub const LANE_EXTENTS: usize = 512;
const LANE_SIZE: usize = (LANE_TABLE + table_size(LANE_EXTENTS)).next_multiple_of(4096);

/// Shared by the pool and all of its workers.
#[derive(Debug, Clone)]
pub struct Common {
    segment: Arc<Segment>,
}

impl Common {
    pub fn create() -> nix::Result<Self> {
        let segment = Segment::create(c"billiard-pool", COMMON_SIZE)?;
        Ok(Self { segment })
    }

    pub fn open(fd: OwnedFd) -> nix::Result<Self> {
        let segment = Segment::open(fd, COMMON_SIZE)?;
        Ok(Self { segment })
    }

    pub fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }

    /// The first byte of the file that is free for extents.
    pub const fn extents_start() -> usize {
        COMMON_SIZE
    }

    pub fn bell(&self) -> &AtomicU64 {
        self.segment.head().u64(BELL)
    }

    pub fn exit(&self) -> &AtomicU64 {
        self.segment.head().u64(EXIT)
    }

    /// In a worker: leaves the CPUs to others until there is more to do than they do. Not for long:
    /// the pool may have died.
    pub fn wait_to_begin(&self) {
        let begun = self.segment.head().u64(BEGUN);
        while begun.load(Ordering::Acquire) == 0 {
            if futex::wait(begun, 0, Some(PATIENCE)) == Err(Errno::ETIMEDOUT) {
                return;
            }
        }
    }

    /// See [`wait_to_begin`](Self::wait_to_begin). Costs nothing but the first time.
    #[inline]
    pub fn begin(&self) {
        let begun = self.segment.head().u64(BEGUN);
        if begun.load(Ordering::Relaxed) == 0 && begun.swap(1, Ordering::Release) == 0 {
            futex::wake(begun, futex::EVERYONE);
        }
    }

    /// How many workers have become ready.
    pub fn ready(&self) -> &AtomicU64 {
        self.segment.head().u64(READY)
    }

    /// A worker of this index is about to be made.
    pub fn make_bed(&self, index: usize) {
        let many = (index + 1).next_multiple_of(64) as u64;
        self.segment
            .head()
            .u64(MANY)
            .fetch_max(many, Ordering::SeqCst);
    }

    /// Writes a task into the slot of a position that is free.
    pub fn write_slot(&self, position: u64, head: &TaskHead, parts: [&[u8]; 2]) {
        let map = self.segment.head();
        let at = DATA + (position as usize % SLOTS) * SLOT;
        map.write(at, &head.to_bytes());
        map.write(at + TaskHead::SIZE, parts[0]);
        map.write(at + TaskHead::SIZE + parts[0].len(), parts[1]);
    }

    /// Copies the task out of a slot that the caller has claimed. Nothing that is in the slot is
    /// believed: lengths that do not fit end in an empty body.
    pub fn read_slot(&self, position: u64, into: &mut [u8; SLOT]) -> TaskHead {
        let at = DATA + (position as usize % SLOTS) * SLOT;
        let bytes = self.segment.head().bytes(at, SLOT);
        let mut head = TaskHead::from_bytes(bytes);
        if head.payload() > TaskHead::ROOM {
            head.func = 0;
            head.body = 0;
        }
        let len = TaskHead::SIZE + head.payload();
        into[..len].copy_from_slice(&bytes[..len]);
        head
    }
}

impl Words for Common {
    fn slots(&self) -> u64 {
        SLOTS as u64
    }

    fn slot(&self, index: u64) -> &AtomicU64 {
        self.segment.head().u64(WORDS + index as usize * 8)
    }

    fn head(&self) -> &AtomicU64 {
        self.segment.head().u64(HEAD)
    }
}

impl Beds for Common {
    fn count(&self) -> usize {
        (self.segment.head().u64(MANY).load(Ordering::Relaxed) as usize).min(WORKERS)
    }

    fn bits(&self, index: usize) -> &AtomicU64 {
        self.segment.head().u64(ASLEEP + index * 8)
    }

    fn word(&self, worker: usize) -> &AtomicU64 {
        self.segment.head().u64(BEDS + worker * 8)
    }
}

/// What stands before a task in its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TaskHead {
    pub task: u64,
    pub flags: u16,
    /// Bytes of the function's pickle.
    pub func: u16,
    /// Bytes of the rest.
    pub body: u32,
}

/// The worker reports that it has accepted this task.
pub const WANTS_ACK: u16 = 1;
/// The slot holds the number of an extent, and the call is there.
pub const IN_EXTENT: u16 = 2;
/// The function's pickle is apart, and a name: a worker that knows it need not look it up again.
pub const NAMED: u16 = 4;

impl TaskHead {
    pub const SIZE: usize = 16;
    /// Bytes that a slot has for function and body.
    pub const ROOM: usize = SLOT - Self::SIZE;

    pub fn payload(&self) -> usize {
        (self.func as usize).saturating_add(self.body as usize)
    }

    fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[..8].copy_from_slice(&self.task.to_le_bytes());
        bytes[8..10].copy_from_slice(&self.flags.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.func.to_le_bytes());
        bytes[12..].copy_from_slice(&self.body.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Self {
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let (task, rest) = (word(0), word(8));
        Self {
            task,
            flags: rest as u16,
            func: (rest >> 16) as u16,
            body: (rest >> 32) as u32,
        }
    }
}

/// Shared by the pool and one worker; thrown away with it.
#[derive(Debug, Clone)]
pub struct Lane {
    segment: Arc<Segment>,
}

impl Lane {
    /// A new one, which forks do not get unless it is [admitted](Segment::admit) to them.
    pub fn create() -> nix::Result<Self> {
        let segment = Segment::create(c"billiard-worker", LANE_SIZE)?;
        segment.withhold();
        Ok(Self { segment })
    }

    pub fn open(fd: OwnedFd) -> nix::Result<Self> {
        let segment = Segment::open(fd, LANE_SIZE)?;
        Ok(Self { segment })
    }

    pub fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }

    /// The first byte of the file that is free for extents.
    pub const fn extents_start() -> usize {
        LANE_SIZE
    }

    pub fn lease(&self) -> &AtomicU64 {
        self.segment.head().u64(LEASE)
    }

    pub fn soft(&self) -> &AtomicU64 {
        self.segment.head().u64(SOFT)
    }

    pub fn retire(&self) -> &AtomicU64 {
        self.segment.head().u64(RETIRE)
    }

    pub fn accepted_at(&self) -> &AtomicU64 {
        self.segment.head().u64(ACCEPTED_AT)
    }

    pub fn done(&self) -> &AtomicU64 {
        self.segment.head().u64(DONE)
    }

    pub fn up(&self) -> &AtomicU64 {
        self.segment.head().u64(UP)
    }

    pub fn room(&self) -> &AtomicU64 {
        self.segment.head().u64(ROOM)
    }
}

impl Store for Lane {
    fn head(&self) -> &AtomicU64 {
        self.segment.head().u64(RING_HEAD)
    }

    fn tail(&self) -> &AtomicU64 {
        self.segment.head().u64(RING_TAIL)
    }

    fn capacity(&self) -> usize {
        RING
    }

    fn write(&self, offset: usize, bytes: &[u8]) {
        self.segment.head().write(RING_DATA + offset, bytes);
    }

    fn bytes(&self, offset: usize, len: usize) -> &[u8] {
        self.segment.head().bytes(RING_DATA + offset, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_comes_out_of_its_slot_as_it_went_in() {
        let common = Common::create().unwrap();
        let head = TaskHead {
            task: 1 << 60 | 7,
            flags: WANTS_ACK | NAMED,
            func: 3,
            body: 4,
        };
        common.write_slot(SLOTS as u64 + 5, &head, [b"abc", b"defg"]);
        let mut bytes = [0; SLOT];
        assert_eq!(common.read_slot(5, &mut bytes), head);
        assert_eq!(&bytes[TaskHead::SIZE..][..head.payload()], b"abcdefg");
    }

    #[test]
    fn a_worker_waits_for_the_pool_to_begin_but_not_for_ever() {
        let common = Common::create().unwrap();
        common.wait_to_begin(); // nobody begins
        let waited = std::thread::scope(|scope| {
            let worker = scope.spawn(|| common.wait_to_begin());
            common.begin();
            worker.join().is_ok()
        });
        assert!(waited);
    }

    #[test]
    fn lengths_that_cannot_be_are_not_believed() {
        let common = Common::create().unwrap();
        let head = TaskHead {
            body: u32::MAX,
            ..TaskHead::default()
        };
        common.write_slot(0, &head, [b"", b""]);
        let mut bytes = [0; SLOT];
        assert_eq!(common.read_slot(0, &mut bytes).payload(), 0);
    }
}
