//! A queue as processes share it: a ring, what is beside it, and a descriptor to wait for.
//!
//! ```text
//!  block   0     R_LOCK and what readers write      a line each, so that writers and readers
//!          64    W_LOCK and what writers write      do not take it from one another
//!          128   bells
//!          192   DONE, the limit, the watch word, who watches
//!          256   the table of overflows
//!          4096  the ring's data
//!          ...   the table of chunks
//!  file    2 MiB and then the chunks, not mapped
//! ```
//! The first three words of the first two lines are those of an internal lock of `synchronize`,
//! so that Python can hold them too.
//!
//! The descriptor is a pipe that has a byte in it while there is something to take. Nobody touches
//! it before somebody asks for the descriptor (`WATCHED`); from then on:
//!
//! ```text
//!  a writer   with W_LOCK, before TAIL: not SIGNALLED? write a byte, set SIGNALLED
//!  a reader   that finds the ring empty: with W_LOCK, still empty? clear SIGNALLED, read the bytes
//! ```
//! So the byte is there before the message and goes after the last one: whoever dies, a message is
//! never without its byte, and a byte without a message goes with the next look at the empty ring.
//! A writer whose program has closed its end opens that of who asked for the descriptor last.
//!
//! The pipe also tells who is left: when no process has its reading end open any more, nobody will
//! ever take what an overflow still holds.

use std::os::fd::{AsRawFd, IntoRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::time::Duration;

use nix::errno::Errno;

use super::arena::Block;
use super::fifo::spill::CHUNK;
use super::fifo::{self, Appender, At, Store, bell, overflow, spill};
use super::owned::{self, Got};
use crate::sys::clock;
use crate::sys::io::{self, Source, Target};
use crate::sys::life::{self, Identity};
use crate::sys::memory::{self, BytesRef, LINE, LineRef, PAGE, WordsRef};
use crate::sys::poll::{Readiness, poll_one};

/// Bytes of a ring's data.
pub const CAPACITY: usize = 1 << 20;
/// Longer messages go beside the ring.
pub const LONGEST: usize = 32 << 10;
/// How many chunks there can be: 64 GiB.
const CHUNKS: usize = 1 << 16;

const DATA: usize = PAGE;
const SPILL: usize = DATA + CAPACITY;
const SIZE: usize = SPILL + spill::words(CHUNKS) * 8;
const OVERFLOW: usize = 4 * LINE;
/// Where the chunks begin in the file, which has its own head before the block.
const CHUNKS_AT: u64 = 2 * CHUNK;
const _: () = assert!((PAGE + SIZE) as u64 <= CHUNKS_AT, "nothing overlaps");
const _: () = assert!(LONGEST <= fifo::longest(CAPACITY));

/// Where a chunk is in the file.
pub fn chunk_at(chunk: u32) -> u64 {
    CHUNKS_AT + u64::from(chunk) * CHUNK
}

const DONE: usize = 0;
const LIMIT: usize = 1;
const WATCH: usize = 2;
/// who asked for the descriptor last: pid << 32 | descriptor
const WATCHER: usize = 3;

const WATCHED: u64 = 1;
const SIGNALLED: u64 = 2;

/// The words and bytes of a queue. *Process-local* handle of *process-shared* memory; a forked
/// child inherits it.
#[derive(Debug)]
pub struct Memory {
    pub block: Arc<Block>,
    readers: LineRef,
    writers: LineRef,
    bells: LineRef,
    counts: LineRef,
    overflow: WordsRef,
    chunks: WordsRef,
    data: BytesRef,
}

impl Store for Memory {
    type Word = AtomicU64;

    #[inline]
    fn word(&self, at: At) -> &AtomicU64 {
        match at {
            At::RLock => &self.readers[0],
            At::Head => &self.readers[3],
            At::TailSeen => &self.readers[4],
            At::WLock => &self.writers[0],
            At::Tail => &self.writers[3],
            At::HeadSeen => &self.writers[4],
            At::Items => &self.bells[0],
            At::Places => &self.bells[1],
            At::Room => &self.bells[2],
            At::Joins => &self.bells[3],
            At::Chunks => &self.bells[4],
            At::Done => &self.counts[DONE],
        }
    }

    #[inline]
    fn capacity(&self) -> usize {
        CAPACITY
    }

    #[inline]
    fn write(&self, offset: usize, from: Source<'_>) {
        self.data.target(offset, from.len()).copy_from(from);
    }

    #[inline]
    fn read(&self, offset: usize, mut into: Target<'_>) {
        into.copy_from(self.data.source(offset, into.len()));
    }
}

/// One end of the pipe. *Process-local*; a forked child has its own descriptor of it.
#[derive(Debug)]
struct End {
    fd: AtomicI32,
    /// (device, inode): programs that become daemons close descriptors that are not theirs
    file: (u64, u64),
}

impl End {
    fn new(fd: RawFd) -> nix::Result<Self> {
        Ok(Self {
            fd: AtomicI32::new(fd),
            file: io::identity(fd)?,
        })
    }

    fn get(&self) -> nix::Result<RawFd> {
        let fd = self.fd.load(Ordering::Relaxed);
        if fd >= 0 && io::identity(fd) == Ok(self.file) {
            Ok(fd)
        } else {
            Err(Errno::EBADF)
        }
    }

    fn close(&self) {
        if let Ok(fd) = self.get() {
            self.fd.store(-1, Ordering::Relaxed);
            drop(memory::take_over(fd));
        }
    }

    fn is_closed(&self) -> bool {
        self.fd.load(Ordering::Relaxed) < 0
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.close();
    }
}

/// What became of a message that was to be put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    Done,
    /// It counts, but the ring has no room for it now.
    NoRoom,
    /// There are as many messages as the queue may have.
    Full,
}

/// A queue. *Process-local* handle of *process-shared* memory and of a pipe; a forked child
/// inherits both.
#[derive(Debug)]
pub struct Channel {
    pub memory: Memory,
    reader: End,
    writer: End,
    /// the limit of a bounded queue, or 0
    limit: u32,
    /// this process needs the descriptors no longer than it has something to move
    is_closing: AtomicBool,
}

impl Channel {
    /// A new queue, for at most `limit` messages (0: any number).
    pub fn create(limit: u32) -> nix::Result<Self> {
        let block = Block::growable(SIZE)?;
        let (reader, writer) = io::pipe((true, true))?;
        let channel = Self::over(block, reader.into_raw_fd(), writer.into_raw_fd())?;
        channel.memory.counts[LIMIT].store(limit.into(), Ordering::Relaxed);
        Ok(Self { limit, ..channel })
    }

    /// A queue that another process made; takes the descriptors over.
    pub fn adopt(block: Arc<Block>, reader: RawFd, writer: RawFd) -> nix::Result<Self> {
        let (reader, writer) = (memory::take_over(reader)?, memory::take_over(writer)?);
        Self::over(block, reader.as_raw_fd(), writer.as_raw_fd()).inspect(|_| {
            std::mem::forget((reader, writer)); // the channel's now
        })
    }

    fn over(block: impl Into<Arc<Block>>, reader: RawFd, writer: RawFd) -> nix::Result<Self> {
        let block = block.into();
        if block.size() != SIZE {
            return Err(Errno::EINVAL);
        }
        let line = |offset: usize| block.line_at(offset);
        let memory = Memory {
            readers: line(0),
            writers: line(LINE),
            bells: line(2 * LINE),
            counts: line(3 * LINE),
            overflow: block.words(OVERFLOW, overflow::WORDS),
            chunks: block.words(SPILL, spill::words(CHUNKS)),
            data: block.bytes(DATA, CAPACITY),
            block,
        };
        Ok(Self {
            limit: memory.counts[LIMIT].load(Ordering::Relaxed) as u32,
            reader: End::new(reader)?,
            writer: End::new(writer)?,
            is_closing: AtomicBool::new(false),
            memory,
        })
    }

    /// How many messages there can be; 0: any number.
    pub fn limit(&self) -> u32 {
        self.limit
    }

    // ---- locks ----

    /// Takes a lock if that needs next to no waiting: others hold it for the time of a copy.
    #[inline]
    pub fn try_lock(&self, at: At) -> bool {
        let word = self.memory.word(at);
        let me = life::me();
        for _ in 0..64 {
            if owned::try_acquire(word, me) {
                return true;
            }
            std::hint::spin_loop();
        }
        false
    }

    /// Takes a lock, from a dead owner too; `false` when the time was over.
    pub fn lock(&self, at: At, timeout: Option<Duration>) -> nix::Result<bool> {
        if self.try_lock(at) {
            return Ok(true);
        }
        let got = owned::wait(self.memory.word(at), life::me(), timeout, life::runs)?;
        Ok(got != Got::Not)
    }

    /// [`lock`](Self::lock) where there is nobody whom a signal could interest.
    pub fn lock_through(&self, at: At, timeout: Option<Duration>) -> bool {
        if self.try_lock(at) {
            return true;
        }
        let end = timeout.map(|timeout| clock::now() + timeout);
        loop {
            let left = end.map(|end| end.saturating_sub(clock::now()));
            match self.lock(at, left) {
                Err(Errno::EINTR) => {}
                other => return other.unwrap_or(false),
            }
        }
    }

    #[inline]
    pub fn unlock(&self, at: At) {
        owned::release(self.memory.word(at));
    }

    // ---- putting ----

    pub fn overflow(&self) -> overflow::Table<'_, AtomicU64> {
        overflow::Table(&self.memory.overflow)
    }

    /// For the holder of `W_LOCK`: puts a message into the ring.
    #[inline]
    pub fn put(&self, tag: u32, message: Source<'_>) -> Put {
        let mut appender = Appender::begin(&self.memory);
        if self.limit != 0 && appender.len() + self.overflow().total() >= self.limit {
            return Put::Full;
        }
        if !appender.add(tag, message) {
            return Put::NoRoom;
        }
        self.commit(appender);
        Put::Done
    }

    /// For the holder of `W_LOCK`: shows messages that have been appended.
    #[inline]
    pub fn commit(&self, appender: Appender<'_, Memory>) {
        let watch = &self.memory.counts[WATCH];
        if watch.load(Ordering::Relaxed) == WATCHED {
            self.signal();
        }
        appender.commit();
    }

    /// Tells the readers of messages that are there now.
    #[inline]
    pub fn tell(&self, count: u32) {
        bell::ring(&self.memory, At::Items, count);
    }

    // ---- taking ----

    /// After messages have been taken and `R_LOCK` has been given up.
    #[inline]
    pub fn taken(&self, count: u32) {
        if self.limit != 0 {
            bell::ring(&self.memory, At::Places, count);
        }
        bell::ring_all_if(&self.memory, At::Room, || fifo::has_room(&self.memory));
    }

    /// Whether a reader has to take the byte out of the pipe: the ring is empty.
    #[inline]
    pub fn has_to_unsignal(&self) -> bool {
        let watch = self.memory.counts[WATCH].load(Ordering::Relaxed);
        watch & WATCHED != 0 && fifo::is_empty(&self.memory)
    }

    // ---- counting ----

    /// How many messages there are, if that takes no lock.
    pub fn count_at_once(&self) -> Option<u32> {
        (self.overflow().total() == 0).then(|| fifo::len(&self.memory))
    }

    /// How many messages there are, with those that processes still have in their own memory.
    /// Not with the GIL held: whoever has the lock may have been stopped.
    pub fn count(&self) -> u32 {
        if let Some(count) = self.count_at_once() {
            return count;
        }
        let locked = self.lock_through(At::WLock, Some(Duration::from_secs(1)));
        if locked {
            self.overflow().bury(life::runs);
        }
        let count = fifo::len(&self.memory) + self.overflow().total();
        if locked {
            self.unlock(At::WLock);
        }
        count
    }

    /// Whether there are as many as there may be, with what dead processes may have had.
    pub fn is_full_now(&self) -> bool {
        self.limit != 0 && fifo::len(&self.memory) + self.overflow().total() >= self.limit
    }

    // ---- the descriptor ----

    /// The reading end of the pipe, from now on readable while there is something to take. Not with
    /// the GIL held.
    pub fn watch(&self) -> nix::Result<RawFd> {
        let fd = self.reader.get()?;
        let watcher = u64::from(life::me().pid) << 32 | fd as u64;
        self.memory.counts[WATCHER].store(watcher, Ordering::Relaxed);
        let watch = &self.memory.counts[WATCH];
        if watch.load(Ordering::Relaxed) & WATCHED == 0
            && self.lock_through(At::WLock, Some(Duration::from_secs(1)))
        {
            watch.fetch_or(WATCHED, Ordering::Relaxed);
            if !fifo::is_empty(&self.memory) {
                self.signal();
            }
            self.unlock(At::WLock);
        }
        if self.has_to_unsignal() {
            self.unsignal();
        }
        Ok(fd)
    }

    #[cold]
    fn signal(&self) {
        let (byte, nothing) = (Source::from(&b"x"[..]), Source::from(&b""[..]));
        if let Ok(fd) = self.writer.get() {
            let _ = io::write2_nowait(fd, byte, nothing);
        } else {
            let watcher = self.memory.counts[WATCHER].load(Ordering::Relaxed);
            let (pid, fd) = ((watcher >> 32) as u32, watcher as u32 as RawFd);
            let Ok(end) = io::open_of(pid, fd, self.writer.file) else {
                return;
            };
            let _ = io::write2(end.as_raw_fd(), byte, nothing);
        }
        self.memory.counts[WATCH].fetch_or(SIGNALLED, Ordering::Relaxed);
    }

    /// Takes the byte out of the pipe if the ring is empty. Not with the GIL held.
    #[cold]
    pub fn unsignal(&self) {
        if !self.lock_through(At::WLock, Some(Duration::from_millis(200))) {
            return;
        }
        if fifo::is_empty(&self.memory)
            && let Ok(fd) = self.reader.get()
        {
            let watch = &self.memory.counts[WATCH];
            watch.fetch_and(!SIGNALLED, Ordering::Relaxed);
            let mut bytes = [0; 64];
            let _ = io::read_nowait(fd, &Target::from(&mut bytes[..]));
        }
        self.unlock(At::WLock);
    }

    /// The ends of the pipe, for another process.
    pub fn fds(&self) -> nix::Result<(RawFd, RawFd)> {
        Ok((self.reader.get()?, self.writer.get()?))
    }

    pub fn writer_fd(&self) -> nix::Result<RawFd> {
        self.writer.get()
    }

    /// This process takes no more.
    pub fn close_reader(&self) {
        self.reader.close();
    }

    /// This process neither takes nor, once it has moved what there is, puts any more.
    pub fn close(&self, is_moving: bool) {
        self.is_closing.store(true, Ordering::SeqCst);
        self.close_reader();
        if !is_moving {
            self.has_moved_all();
        }
    }

    /// Closes what was open for moving.
    pub fn has_moved_all(&self) {
        if self.is_closing.load(Ordering::SeqCst) {
            self.writer.close();
            self.memory.block.segment().close_fd();
        }
    }

    /// Whether no process takes any more. Known only when this one does not.
    pub fn is_abandoned(&self) -> bool {
        self.reader.is_closed()
            && self
                .writer
                .get()
                .and_then(|fd| poll_one(fd, Some(Duration::ZERO)))
                .is_ok_and(|found| found == Readiness::Ready)
    }

    // ---- chunks ----

    pub fn chunks(&self) -> spill::Table<'_, AtomicU64> {
        spill::Table(&self.memory.chunks)
    }

    /// The file that the chunks are in.
    pub fn file(&self) -> nix::Result<RawFd> {
        self.memory.block.segment().fd()
    }

    /// Takes the chunks of the dead, for the caller to free. `named` says which ones a message is in.
    pub fn chunks_of_the_dead(
        &self,
        named: impl Fn(u32, &[u8]) -> Vec<spill::Run>,
    ) -> Vec<spill::Run> {
        let limit = Some(Duration::from_millis(200));
        if !self.lock_through(At::WLock, limit) {
            return Vec::new();
        }
        let mut found = Vec::new();
        if self.lock_through(At::RLock, limit) {
            let mut runs = Vec::new();
            let all = fifo::each(&self.memory, |record| {
                let mut bytes = vec![0; record.len];
                self.memory
                    .read(record.offset, Target::from(&mut bytes[..]));
                runs.extend(named(record.tag, &bytes));
            });
            if all.is_ok() {
                found = self.chunks().bury(life::me(), &runs, life::runs);
            }
            self.unlock(At::RLock);
        }
        self.unlock(At::WLock);
        found
    }

    /// This process, as it signs.
    pub fn me(&self) -> Identity {
        life::me()
    }
}
