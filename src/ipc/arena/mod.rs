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
//!
//! That is here, with the handlers of `fork`. [`segment`] and [`block`] are the handles, [`loan`] is
//! how a segment gets to another process, [`moment`] says who has branched off since.

mod block;
mod loan;
mod moment;
mod segment;

use std::sync::{Arc, Once, Weak};

use nix::errno::Errno;

use self::segment::{COMMON_HEAD, Kind};
use super::family::{Promise, World};
use super::heap::{self, Heap, Spot};
use crate::sys::fork::{self, ForkLock};
use crate::sys::{clock, life};

pub use block::Block;
pub use loan::{Loan, borrow};
pub use moment::Moment;
pub use segment::Segment;

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
            .find(|s| s.id() == id)
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
mod tests;
