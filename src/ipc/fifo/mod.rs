//! The ring of a queue: messages of any size from many writers to many readers.
//!
//! *Process-shared*: a few words and a power of two of data bytes. A record is an 8-byte header
//! `len | tag << 32` and its bytes, padded to 8, never split: where one does not fit before the
//! end of the data, a `PAD` record fills the rest.
//!
//! ```text
//!  word        moved by                        when
//!  ----------  ------------------------------  --------------------------------------------------
//!  W_LOCK      who appends (see `owned`)       by compare-and-swap, with its own name in it
//!  TAIL        the holder of W_LOCK            its records are complete (release)
//!  HEAD_SEEN   the holder of W_LOCK            a copy of HEAD, renewed when the ring looks full
//!  R_LOCK      who takes (see `owned`)         by compare-and-swap, with its own name in it
//!  HEAD        the holder of R_LOCK            a record has been copied out (release)
//!  TAIL_SEEN   the holder of R_LOCK            a copy of TAIL, renewed when the ring looks empty
//!  DONE        who calls task_done             by compare-and-swap
//!  bells       see `bell` below
//! ```
//! TAIL and HEAD are cursors that only grow (modulo 2^32): how many messages have passed, and where
//! in the data, in units of 8 bytes, in one word. So a message is in the ring or not in it, and is
//! counted or not, at one instant:
//!
//! ```text
//!  a writer that dies    before TAIL: its message is not there      after: it is there
//!  a reader that dies    before HEAD: its message is still there    after: it is gone with it
//! ```
//! Whoever wants the lock next sees that its owner is dead and goes on from TAIL or HEAD, as if
//! the dead one had not begun.

pub mod bell;
pub mod overflow;
pub mod spill;

use super::word::Word;
use crate::sys::io::{Source, Target};

pub const HEADER: usize = 8;
const UNIT: usize = 8;
const PAD: u32 = u32::MAX;

/// The words of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    RLock,
    Head,
    TailSeen,
    WLock,
    Tail,
    HeadSeen,
    Done,
    /// readers that wait for a message
    Items,
    /// writers that wait for a place in a bounded queue
    Places,
    /// those with an overflow who wait for room
    Room,
    /// those who wait for every task to be done
    Joins,
    /// writers of long messages who would rather use memory again than new memory
    Chunks,
}

/// Where the words and the bytes are.
pub trait Store {
    type Word: Word;
    fn word(&self, at: At) -> &Self::Word;
    /// How many data bytes: a power of two.
    fn capacity(&self) -> usize;
    fn write(&self, offset: usize, from: Source<'_>);
    fn read(&self, offset: usize, into: Target<'_>);
}

/// A place in the ring: how many messages are before it, and in which unit it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    pub count: u32,
    unit: u32,
}

impl Cursor {
    const fn unpack(word: u64) -> Self {
        Self {
            count: word as u32,
            unit: (word >> 32) as u32,
        }
    }

    const fn pack(self) -> u64 {
        (self.unit as u64) << 32 | self.count as u64
    }
}

/// The memory has been overwritten by something else.
#[derive(Debug, PartialEq, Eq)]
pub struct Corrupt;

/// The longest message that goes into a ring of so many bytes; it leaves room for a few.
pub const fn longest(capacity: usize) -> usize {
    capacity / 8 - HEADER
}

const fn units(len: usize) -> u32 {
    1 + len.div_ceil(UNIT) as u32
}

fn cursor<S: Store>(store: &S, at: At) -> Cursor {
    Cursor::unpack(store.word(at).load())
}

/// How many messages there are.
pub fn len<S: Store>(store: &S) -> u32 {
    let mut head = cursor(store, At::Head).count;
    loop {
        let tail = cursor(store, At::Tail).count;
        // The tail was there together with this head.
        let now = cursor(store, At::Head).count;
        if now == head {
            return tail.wrapping_sub(head);
        }
        head = now;
    }
}

#[inline]
pub fn is_empty<S: Store>(store: &S) -> bool {
    // In this order: what is put meanwhile may be missed, what is taken is not seen.
    let head = store.word(At::Head).load();
    store.word(At::Tail).load() == head
}

/// Bytes of the data that are in use.
fn used<S: Store>(store: &S) -> usize {
    let head = cursor(store, At::Head).unit;
    cursor(store, At::Tail).unit.wrapping_sub(head) as usize * UNIT
}

/// Whether so much is free that somebody with an overflow should go on.
pub fn has_room<S: Store>(store: &S) -> bool {
    used(store) <= store.capacity() / 2
}

/// Whether there is room for one of the longest messages, or many short ones.
pub fn has_some_room<S: Store>(store: &S) -> bool {
    used(store) <= store.capacity() / 4 * 3
}

/// Messages being appended by the holder of `W_LOCK`; they are there from
/// [`commit`](Self::commit) on.
#[derive(Debug)]
pub struct Appender<'a, S> {
    store: &'a S,
    tail: Cursor,
    head: Cursor,
}

impl<'a, S: Store> Appender<'a, S> {
    #[inline]
    pub fn begin(store: &'a S) -> Self {
        Self {
            store,
            tail: cursor(store, At::Tail),
            head: cursor(store, At::HeadSeen),
        }
    }

    fn units(&self) -> u32 {
        (self.store.capacity() / UNIT) as u32
    }

    /// Appends one message; false when there is no room for it now.
    #[inline]
    pub fn add(&mut self, tag: u32, message: Source<'_>) -> bool {
        debug_assert!(message.len() <= longest(self.store.capacity()) && tag != PAD);
        let all = self.units();
        let own = units(message.len());
        let at = self.tail.unit % all;
        let to_end = all - at;
        let pad = if own > to_end { to_end } else { 0 };
        if !self.fits(own + pad) {
            return false;
        }
        let mut offset = at as usize * UNIT;
        if pad != 0 {
            self.header(offset, 0, PAD);
            offset = 0;
        }
        self.header(offset, message.len() as u32, tag);
        self.store.write(offset + HEADER, message);
        self.tail.unit = self.tail.unit.wrapping_add(own + pad);
        self.tail.count = self.tail.count.wrapping_add(1);
        true
    }

    fn header(&self, offset: usize, len: u32, tag: u32) {
        let header = (u64::from(tag) << 32 | u64::from(len)).to_le_bytes();
        self.store.write(offset, Source::from(&header[..]));
    }

    #[inline]
    fn fits(&mut self, wanted: u32) -> bool {
        if self.free() >= wanted {
            return true;
        }
        self.head = cursor(self.store, At::Head);
        self.store.word(At::HeadSeen).store(self.head.pack());
        self.free() >= wanted
    }

    #[inline]
    fn free(&self) -> u32 {
        let used = self.tail.unit.wrapping_sub(self.head.unit);
        self.units().saturating_sub(used)
    }

    /// How many messages are in the ring, with those that are being appended.
    pub fn len(&self) -> u32 {
        let head = cursor(self.store, At::Head).count;
        self.tail.count.wrapping_sub(head)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Shows the messages to the readers. Dropping the appender without it forgets them.
    #[inline]
    pub fn commit(self) {
        self.store.word(At::Tail).store(self.tail.pack());
    }
}

/// The oldest message, as the holder of `R_LOCK` sees it.
#[derive(Clone, Copy, Debug)]
pub struct Record {
    pub tag: u32,
    pub len: usize,
    /// of its bytes in the data
    pub offset: usize,
    next: Cursor,
}

/// For the holder of `R_LOCK`: the oldest message, which stays until [`advance`].
#[inline]
pub fn peek<S: Store>(store: &S) -> Result<Option<Record>, Corrupt> {
    let head = cursor(store, At::Head);
    let mut tail = cursor(store, At::TailSeen);
    if tail == head {
        tail = cursor(store, At::Tail);
        store.word(At::TailSeen).store(tail.pack());
        if tail == head {
            return Ok(None);
        }
    }
    record_at(store, head, tail).map(Some)
}

/// For the holder of both locks: every message, oldest first.
pub fn each<S: Store>(store: &S, mut f: impl FnMut(Record)) -> Result<(), Corrupt> {
    let mut head = cursor(store, At::Head);
    let tail = cursor(store, At::Tail);
    while head != tail {
        let record = record_at(store, head, tail)?;
        head = record.next;
        f(record);
    }
    Ok(())
}

#[inline]
fn record_at<S: Store>(store: &S, head: Cursor, tail: Cursor) -> Result<Record, Corrupt> {
    let all = (store.capacity() / UNIT) as u32;
    let mut unit = head.unit;
    loop {
        let at = unit % all;
        let mut header = [0; HEADER];
        store.read(at as usize * UNIT, Target::from(&mut header[..]));
        let both = u64::from_le_bytes(header);
        let (len, tag) = (both as u32 as usize, (both >> 32) as u32);
        let filled = tail.unit.wrapping_sub(unit);
        let to_end = all - at;
        if filled == 0 || filled > all {
            return Err(Corrupt);
        }
        if tag == PAD {
            if to_end > filled {
                return Err(Corrupt);
            }
            unit = unit.wrapping_add(to_end);
            continue;
        }
        if len > longest(store.capacity()) || units(len) > to_end.min(filled) {
            return Err(Corrupt);
        }
        return Ok(Record {
            tag,
            len,
            offset: at as usize * UNIT + HEADER,
            next: Cursor {
                count: head.count.wrapping_add(1),
                unit: unit.wrapping_add(units(len)),
            },
        });
    }
}

/// For the holder of `R_LOCK`: the message has been copied out, its bytes are free.
#[inline]
pub fn advance<S: Store>(store: &S, record: &Record) {
    store.word(At::Head).store(record.next.pack());
}

/// For the holder of `R_LOCK`: throws away what is there, which nobody can read.
pub fn reset<S: Store>(store: &S) {
    let tail = store.word(At::Tail).load();
    store.word(At::TailSeen).store(tail);
    store.word(At::Head).store(tail);
}

/// How many messages have been put and not been reported done, `beside` of them not in the ring yet.
pub fn unfinished<S: Store>(store: &S, beside: u32) -> u32 {
    let done = store.word(At::Done).load() as u32;
    let put = cursor(store, At::Tail).count.wrapping_add(beside);
    put.wrapping_sub(done)
}

/// Reports one message done; `None` if all were, else whether this was the last.
pub fn task_done<S: Store>(store: &S, beside: u32) -> Option<bool> {
    let put = cursor(store, At::Tail).count.wrapping_add(beside);
    let done = store.word(At::Done).update(|done| {
        let done = done as u32;
        (put != done).then_some(u64::from(done.wrapping_add(1)))
    });
    done.is_ok().then(|| unfinished(store, beside) == 0)
}

#[cfg(test)]
mod models;

#[cfg(all(test, not(loom)))]
mod tests;
