//! Messages that are too large for a ring: extents of a segment, named by a reference in the ring.
//!
//! One process, the sender, gives out the extents of a segment; any other that has the segment
//! receives them. A message is copied once, by the sender; who receives it reads it where it is,
//! or maps it privately (copy on write) for as long as it wants.
//!
//! ```text
//!  the segment   head: ... │ words │ places │ ...      behind it: extents, which come and go
//!                            one of each per entry     chunks of small ones, large ones alone
//!
//!  sender (Pool)                                       receiver (Receiver)
//!  allocate ─► Extent ─ write ─► send ── reference ──► take ─► Taken ─ shared()   read in place
//!     ▲                 through the ring, 32 bits                    ├ private()  map, keep
//!     └───────────── the word says Free (word.rs) ◄────── drop ◄─────┴ copy_out()
//! ```
//!
//! What is cheap here and what is not was measured (64 MiB, one core of a virtual machine): writing
//! over shared pages that are mapped 9 ms, writing to a file whose pages exist 16 ms, to new pages
//! 29 ms, and touching new pages through a mapping 62 ms. Therefore a new extent is written with
//! `pwrite`, is mapped when it is used a second time, and stays mapped: extents that came back are
//! used again before new ones are made. Huge pages are off for shared memory on most systems;
//! prefaulting private mappings gained nothing, as the kernel maps 16 pages at a read fault anyway.

pub mod word;

mod pool;
mod receiver;
mod room;

pub use pool::{Bounds, Extent, Pool};
pub use receiver::{Private, Receiver, Refused, Shared, Taken};
pub use word::SENDER;

/// Extents from this size on are page aligned and mapped each by itself.
pub const LARGE: usize = 64 << 10;

/// Bytes in the head of a segment for the table of this many entries.
pub const fn table_size(entries: usize) -> usize {
    entries * 8 * (1 + PLACE)
}

/// Words that say where an extent is: offset, capacity, length.
const PLACE: usize = 3;

/// Small extents are parts of chunks, which start at multiples of their size.
const CHUNK: usize = 256 << 10;

/// Names a message: the entry, and the last bits of its generation.
const fn reference(entry: u16, generation: u32) -> u32 {
    (generation as u16 as u32) << 16 | entry as u32
}

/// The table in the head of a segment. *Process-shared* words behind *process-local* numbers.
#[derive(Clone, Copy, Debug)]
struct Table {
    start: usize,
    entries: usize,
}

impl Table {
    /// At most 65,536 entries.
    fn new(start: usize, entries: usize) -> Self {
        assert!(start.is_multiple_of(8) && entries <= 1 << 16);
        Self { start, entries }
    }

    fn word(self, entry: u16) -> usize {
        self.start + usize::from(entry) * 8
    }

    fn place(self, entry: u16) -> usize {
        self.start + (self.entries + usize::from(entry) * PLACE) * 8
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
