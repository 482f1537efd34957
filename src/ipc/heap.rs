//! The spots of memory that a process gives out.
//!
//! Sizes are rounded up to classes, so that a spot is used again as it is; nothing is ever split or
//! merged. *Process-local*: a forked child abandons it.
//!
//! ```text
//!            take                   put, nobody born since it was taken
//!   segment ──────► spot in use ─────────────────────────────────────────► free ──► take
//!                        │ put                                              ▲
//!                        └────────► withheld ───────────────────────────────┘
//!                                   (a descendant may see it)   review: nobody alive sees it
//! ```

use std::collections::HashMap;
use std::sync::Arc;

use super::arena::Segment;
use super::family::{Living, World};
use crate::sys::memory::LINE;

const FIRST_SEGMENT: usize = 256 << 10;
const LARGEST_SEGMENT: usize = 8 << 20;

/// How many spots may be withheld before a look whether they still have to be.
const PATIENCE: usize = 64;

/// Where a block is.
#[derive(Debug)]
pub struct Spot {
    pub segment: Arc<Segment>,
    pub offset: usize,
}

#[derive(Debug)]
struct Withheld {
    spot: Spot,
    class: usize,
    created: u64,
    freed: u64,
}

/// The spots of the segments that a process made.
#[derive(Debug)]
pub struct Heap {
    open: Option<Spot>,
    next_len: usize,
    free: Vec<Vec<Spot>>,
    withheld: Vec<Withheld>,
    /// how many were withheld after the last look
    kept: usize,
}

impl Heap {
    pub const fn empty() -> Self {
        Self {
            open: None,
            next_len: FIRST_SEGMENT,
            free: Vec::new(),
            withheld: Vec::new(),
            kept: 0,
        }
    }

    /// A spot of this class, all zero: one that is free, or else one that was never used.
    pub fn take(&mut self, class: usize) -> Option<Spot> {
        if let Some(spot) = self.free.get_mut(class).and_then(Vec::pop) {
            spot.segment.zero(spot.offset, class_size(class));
            return Some(spot);
        }
        self.carve(class_size(class))
    }

    /// Takes a spot back that was in use during the epochs `created..freed`.
    pub fn put(&mut self, spot: Spot, class: usize, created: u64, freed: u64, world: &impl World) {
        if created == freed {
            return self.free(spot, class);
        }
        self.withheld.push(Withheld {
            spot,
            class,
            created,
            freed,
        });
        if self.withheld.len() >= self.kept * 2 + PATIENCE {
            self.review(world);
        }
    }

    /// How long the next segment should be that `open` gets.
    pub fn next_len(&self) -> usize {
        self.next_len
    }

    /// Gives out of this segment from now on, whose blocks begin at `start`.
    pub fn open(&mut self, segment: Arc<Segment>, start: usize) {
        self.close();
        self.next_len = (segment.len() * 2).min(LARGEST_SEGMENT);
        self.open = Some(Spot {
            segment,
            offset: start,
        });
    }

    /// Frees what is withheld and seen by nobody any more.
    pub fn review(&mut self, world: &impl World) {
        let mut looks: HashMap<u128, Option<Living>> = HashMap::new();
        for item in std::mem::take(&mut self.withheld) {
            let segment = &item.spot.segment;
            let living = looks
                .entry(segment.id())
                .or_insert_with(|| segment.table().and_then(|table| table.living(world)));
            match living {
                Some(living) if living.cannot_see(item.created, item.freed) => {
                    self.free(item.spot, item.class);
                }
                _ => self.withheld.push(item),
            }
        }
        self.kept = self.withheld.len();
    }

    fn free(&mut self, spot: Spot, class: usize) {
        if self.free.len() <= class {
            self.free.resize_with(class + 1, Vec::new);
        }
        self.free[class].push(spot);
    }

    /// The next never used bytes of the open segment.
    fn carve(&mut self, size: usize) -> Option<Spot> {
        let open = self.open.as_mut()?;
        if open.segment.len() - open.offset < size {
            return None;
        }
        let spot = Spot {
            segment: Arc::clone(&open.segment),
            offset: open.offset,
        };
        open.offset += size;
        Some(spot)
    }

    /// Makes free spots of what is left in the open segment.
    fn close(&mut self) {
        while let Some(open) = &self.open {
            let left = open.segment.len() - open.offset;
            match class_within(left).and_then(|class| Some((self.carve(class_size(class))?, class)))
            {
                Some((spot, class)) => self.free(spot, class),
                None => self.open = None,
            }
        }
    }
}

/// Sizes that blocks are rounded up to: 64, 128, ... 512, then four steps to each doubling.
pub fn class_size(class: usize) -> usize {
    if class < 8 {
        return (class + 1) * LINE;
    }
    let (doubling, step) = ((class - 8) / 4, (class - 8) % 4 + 1);
    (512 << doubling) + step * (128 << doubling)
}

/// The smallest class that holds `size` bytes.
pub fn class_of(size: usize) -> usize {
    let lines = size.max(1).div_ceil(LINE);
    if lines <= 8 {
        return lines - 1;
    }
    let doubling = (size - 1).ilog2() as usize - 9;
    8 + doubling * 4 + (size - 1 - (512 << doubling)) / (128 << doubling)
}

/// The largest class that is no larger than `size` bytes.
fn class_within(size: usize) -> Option<usize> {
    let class = class_of(size);
    if class_size(class) == size {
        Some(class)
    } else {
        class.checked_sub(1)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn classes_hold_their_sizes_without_much_waste() {
        for size in (0..5000).chain((1..1024).map(|k| k * 1024)) {
            let class = class_of(size);
            assert!(class_size(class) >= size);
            assert!(class == 0 || class_size(class - 1) < size, "{size}");
            assert!(class_size(class).is_multiple_of(LINE));
            let within = class_within(size).map_or(0, class_size);
            assert!(within <= size && (size < LINE || within + size / 4 + LINE > size));
        }
    }
}
