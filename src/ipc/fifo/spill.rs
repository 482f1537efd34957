//! Memory beside the ring, for messages that are too long for it, in chunks of 1 MiB.
//!
//! ```text
//!  word of a chunk      who                                         to
//!  -------------------  ------------------------------------------  ------------------
//!  0, free              a writer, by compare-and-swap               the writer's name
//!  the writer's name    a reader, while it holds R_LOCK, before     the reader's name
//!                       it moves HEAD
//!  the reader's name    the reader, when it has copied the message  0
//!  a dead one's name    who holds both locks and has seen that no   its own name, and
//!                       message in the ring is in this chunk        then 0
//! ```
//! The message in the ring says which chunks it is in, and is what counts: a chunk that one names
//! belongs to it, whoever's name is in its word. So the name matters only while no message in the
//! ring names the chunk, and then it is the name of who is writing or reading it.

use crate::ipc::word::Word;
use crate::sys::life::Identity;

/// Bytes.
pub const CHUNK: u64 = 1 << 20;
/// Chunks that keep their memory when they are free.
pub const KEPT: u32 = 32;

/// Chunks ever used.
const USED: usize = 0;
/// Where to look first: nothing before it was free lately.
const HINT: usize = 1;
const CHUNKS: usize = 8;

/// How many words a table of so many chunks has.
pub const fn words(chunks: usize) -> usize {
    CHUNKS + chunks
}

/// Chunks in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub start: u32,
    pub count: u32,
}

/// The words: all zero at first. *Process-shared*.
#[derive(Clone, Copy, Debug)]
pub struct Table<'a, W>(pub &'a [W]);

fn name(who: Identity) -> u64 {
    u64::from(who.stamp) << 32 | u64::from(who.pid)
}

impl<W: Word> Table<'_, W> {
    fn chunks(&self) -> &[W] {
        &self.0[CHUNKS..]
    }

    /// How many chunks were ever used.
    pub fn used(&self) -> u32 {
        (self.0[USED].load() as u32).min(self.chunks().len() as u32)
    }

    /// Takes `count` chunks; `None`, and none taken, if there are not as many.
    pub fn take(&self, me: Identity, count: u32) -> Option<Vec<Run>> {
        let mut taken: Vec<Run> = Vec::new();
        let mut left = count;
        let used = self.used() as usize;
        let hint = (self.0[HINT].load() as usize).min(used);
        let places = (hint..used).chain(0..hint);
        for at in places.chain(used..self.chunks().len()) {
            if left == 0 {
                break;
            }
            let chunk = &self.chunks()[at];
            if chunk.load() != 0 || chunk.compare_exchange(0, name(me)).is_err() {
                continue;
            }
            left -= 1;
            let at = at as u32;
            match taken.last_mut() {
                Some(run) if run.start + run.count == at => run.count += 1,
                _ => taken.push(Run {
                    start: at,
                    count: 1,
                }),
            }
            let reached = u64::from(at) + 1;
            let _ = self.0[USED].update(|used| (used < reached).then_some(reached));
            self.0[HINT].store(reached);
        }
        if left == 0 {
            return Some(taken);
        }
        self.free(&taken);
        None
    }

    /// Whether so many could be taken without using chunks that were never used.
    pub fn has_free(&self, count: u32) -> bool {
        let free = self.chunks()[..self.used() as usize].iter();
        free.filter(|chunk| chunk.load() == 0).count() >= count as usize
    }

    /// For the holder of `R_LOCK`: these are mine now. False if there are no such chunks.
    pub fn own(&self, me: Identity, runs: &[Run]) -> bool {
        let chunks = self.chunks();
        runs.iter().all(|run| {
            let all = chunks.get(run.start as usize..run.start as usize + run.count as usize);
            all.is_some_and(|all| {
                all.iter().for_each(|chunk| chunk.store(name(me)));
                true
            })
        })
    }

    /// Gives chunks back that are the caller's.
    pub fn free(&self, runs: &[Run]) {
        for run in runs {
            for at in run.start..run.start + run.count {
                self.chunks()[at as usize].store(0);
            }
            let start = u64::from(run.start);
            let _ = self.0[HINT].update(|hint| (hint > start).then_some(start));
        }
    }

    /// For the holder of both locks: makes mine what the dead had and no message in the ring
    /// (`named`) is in; returns it.
    pub fn bury(&self, me: Identity, named: &[Run], runs: impl Fn(Identity) -> bool) -> Vec<Run> {
        let mut wanted = vec![false; self.used() as usize];
        for run in named {
            let end = (run.start as usize + run.count as usize).min(wanted.len());
            let start = (run.start as usize).min(end);
            wanted[start..end].fill(true);
        }
        let mut known: Vec<(u64, bool)> = Vec::new();
        let mut found = Vec::new();
        for (at, _) in wanted.iter().enumerate().filter(|(_, wanted)| !**wanted) {
            let owner = self.chunks()[at].load();
            if owner == 0 {
                continue;
            }
            let alive = known.iter().find(|(who, _)| *who == owner);
            let alive = alive.map(|(_, alive)| *alive).unwrap_or_else(|| {
                let alive = runs(Identity {
                    pid: owner as u32,
                    stamp: (owner >> 32) as u32,
                });
                known.push((owner, alive));
                alive
            });
            if !alive && self.chunks()[at].compare_exchange(owner, name(me)).is_ok() {
                found.push(Run {
                    start: at as u32,
                    count: 1,
                });
            }
        }
        found
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    const A: Identity = Identity { pid: 7, stamp: 70 };
    const B: Identity = Identity { pid: 8, stamp: 80 };

    fn table(chunks: usize) -> Vec<AtomicU64> {
        (0..words(chunks)).map(|_| AtomicU64::new(0)).collect()
    }

    #[test]
    fn chunks_are_used_again_before_new_ones() {
        let words = table(8);
        let table = Table(&words);
        let first = table.take(A, 3).unwrap();
        assert_eq!(first, [Run { start: 0, count: 3 }]);
        let second = table.take(A, 1).unwrap();
        table.free(&first);
        assert!(table.has_free(3) && !table.has_free(4));
        let third = table.take(A, 4).unwrap();
        let whole = [Run { start: 0, count: 3 }, Run { start: 4, count: 1 }];
        assert_eq!(third, whole);
        assert_eq!(table.take(A, 4), None);
        assert_eq!(table.take(A, 3).unwrap(), [Run { start: 5, count: 3 }]);
        table.free(&second);
        assert_eq!(table.take(B, 1).unwrap(), second);
    }

    #[test]
    fn only_what_the_dead_had_and_no_message_names_is_found() {
        let words = table(8);
        let table = Table(&words);
        let in_the_ring = table.take(A, 2).unwrap();
        let being_written = table.take(A, 1).unwrap();
        let of_the_living = table.take(B, 1).unwrap();
        let found = table.bury(B, &in_the_ring, |who| who == B);
        assert_eq!(found, being_written);
        table.free(&found);
        assert!(table.own(B, &in_the_ring) && table.own(B, &of_the_living));
        assert_eq!(table.bury(B, &[], |who| who == B), []);
        assert!(!table.own(B, &[Run { start: 7, count: 2 }]));
    }
}
