//! Who may still see a block of shared memory that its maker has freed.
//!
//! Blocks of a segment are given out and taken back by one process, the segment's maker. Its
//! descendants see the blocks that there were when their line branched off from it, and may use
//! them for as long as they live. So each segment carries a table of the living descendants, with
//! the *birth* of each: the maker's epoch when that line branched off. A block that was created
//! at epoch C and freed at F may be used again when no living entry has a birth in C..F.
//!
//! ```text
//!  an entry: tag (version, kind, pid), birth, since
//!
//!            promise            keep: in the child itself
//!   Free ───► Filling ───► Promised ───────────────► Living ──┐ its process is gone
//!    ▲           │          │ dropped, or its maker    ▲      │
//!    │           │          ▼ is gone                  │      │
//!    │           │       Expiring ─────────────────────┘      │
//!    │           │          │ GRACE seconds later             │
//!    └───────────┴──────────┴─────────────────────────────────┘ by whoever needs to know
//! ```
//! * A fork promises (as Expiring) before it, and the child keeps the promise in its first
//!   instructions: there is no instant at which a living child is not in the table.
//! * For a spawned child, who lends it the segment promises (as Promised) while it pickles; the
//!   child keeps the promise when it maps the segment. It may never come to that, so a promise
//!   lasts as long as its maker holds it, and GRACE longer.
//! * A child of a descendant gets its parent's birth: it can see what its parent can see.
//! * A pid that the system has used again looks alive: reuse is delayed, never too early.
//! * No entry free: the birth is noted as one that never ends.
//!
//! Looking through the table takes time, in which a line can move to an entry that has been
//! looked at already (a child is born, its parent dies). So births are counted, before they are,
//! and a look during which the count changed says nothing.

use super::word::Word;

/// Seconds that a child gets to keep its promise once nobody holds it any more. It costs nothing
/// to be generous: only memory that a start which failed could have seen is withheld meanwhile.
pub const GRACE: u64 = 600;

const BIRTHS: usize = 0;
const UNLISTED: usize = 1;
const ENTRIES: usize = 2;
const ENTRY_WORDS: usize = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Free,
    Filling,
    Promised,
    Expiring,
    Living,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tag {
    version: u32,
    kind: Kind,
    pid: u32,
}

impl Tag {
    fn unpack(word: u64) -> Self {
        let kind = match word >> 32 & 7 {
            0 => Kind::Free,
            1 => Kind::Filling,
            2 => Kind::Promised,
            3 => Kind::Expiring,
            _ => Kind::Living,
        };
        Self {
            version: (word >> 35) as u32,
            kind,
            pid: word as u32,
        }
    }

    fn pack(self) -> u64 {
        let version = u64::from(self.version) & ((1 << 29) - 1);
        version << 35 | (self.kind as u64) << 32 | u64::from(self.pid)
    }
}

/// A place in the table for a process that is not there yet. Plain data: it can travel to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promise {
    pub entry: u32,
    pub version: u32,
    pub maker: u32,
    pub birth: u64,
}

/// What the table needs to know of the world.
pub trait World {
    /// Whether there is a process of this pid.
    fn exists(&self, pid: u32) -> bool;
    /// Seconds, by a clock that all processes share.
    fn now(&self) -> u64;
}

/// The births that living processes hold on to.
#[derive(Debug)]
pub struct Living {
    births: Vec<u64>,
    /// blocks created before this epoch are never free
    unlisted: u64,
}

impl Living {
    /// Whether a block that existed during `created..freed` is seen by nobody any more.
    pub fn cannot_see(&self, created: u64, freed: u64) -> bool {
        let first = self.births.partition_point(|&birth| birth < created);
        created >= self.unlisted && self.births.get(first).is_none_or(|&birth| birth >= freed)
    }
}

/// The table at the head of a segment. *Process-shared*; all zero when it is new.
#[derive(Debug)]
pub struct Table<'a, W> {
    words: &'a [W],
}

impl<'a, W: Word> Table<'a, W> {
    pub fn new(words: &'a [W]) -> Self {
        Self { words }
    }

    fn len(&self) -> usize {
        (self.words.len() - ENTRIES) / ENTRY_WORDS
    }

    fn tag(&self, entry: usize) -> &W {
        &self.words[ENTRIES + entry * ENTRY_WORDS]
    }

    fn birth(&self, entry: usize) -> &W {
        &self.words[ENTRIES + entry * ENTRY_WORDS + 1]
    }

    fn since(&self, entry: usize) -> &W {
        &self.words[ENTRIES + entry * ENTRY_WORDS + 2]
    }

    fn change(&self, entry: usize, from: Tag, kind: Kind, pid: u32) -> bool {
        let to = Tag { kind, pid, ..from };
        self.tag(entry)
            .compare_exchange(from.pack(), to.pack())
            .is_ok()
    }

    /// Announces a process that will see what exists at `birth`. With `held`, the promise lasts
    /// until [`drop_promise`](Self::drop_promise); without, it expires by itself.
    ///
    /// `None`: the table is full, and the birth is noted for ever.
    pub fn promise(
        &self,
        maker: u32,
        birth: u64,
        held: bool,
        world: &impl World,
    ) -> Option<Promise> {
        let promise = self.fill(maker, birth, held, world).or_else(|| {
            for entry in 0..self.len() {
                let _ = self.look(entry, world);
            }
            self.fill(maker, birth, held, world)
        });
        if promise.is_none() {
            let _ = self.words[UNLISTED].update(|now| (now <= birth).then_some(birth + 1));
        }
        let _ = self.words[BIRTHS].update(|now| Some(now.wrapping_add(1)));
        promise
    }

    fn fill(&self, maker: u32, birth: u64, held: bool, world: &impl World) -> Option<Promise> {
        for entry in 0..self.len() {
            let seen = Tag::unpack(self.tag(entry).load());
            let version = seen.version.wrapping_add(1) & ((1 << 29) - 1);
            let filling = Tag {
                version,
                kind: Kind::Filling,
                pid: maker,
            };
            if seen.kind == Kind::Free
                && self
                    .tag(entry)
                    .compare_exchange(seen.pack(), filling.pack())
                    .is_ok()
            {
                self.birth(entry).store(birth);
                self.since(entry).store(world.now());
                let kind = if held { Kind::Promised } else { Kind::Expiring };
                self.change(entry, filling, kind, maker);
                return Some(Promise {
                    entry: entry as u32,
                    version,
                    maker,
                    birth,
                });
            }
        }
        None
    }

    /// The process `pid` is there. `false` if the promise has expired: it needs another one.
    pub fn keep(&self, promise: Promise, pid: u32) -> bool {
        let entry = promise.entry as usize;
        if entry >= self.len() {
            return false;
        }
        let mut promised = Tag {
            version: promise.version,
            kind: Kind::Promised,
            pid: promise.maker,
        };
        let living = Tag {
            kind: Kind::Living,
            pid,
            ..promised
        };
        loop {
            if self.change(entry, promised, Kind::Living, pid) {
                return true;
            }
            let now = Tag::unpack(self.tag(entry).load());
            if now == living {
                return true; // the same loan, unpickled twice
            }
            if now.version != promised.version
                || !matches!(now.kind, Kind::Promised | Kind::Expiring)
            {
                return false;
            }
            promised = now;
        }
    }

    /// A held promise is held no more; who has not kept it by then gets GRACE to do it.
    pub fn drop_promise(&self, promise: Promise, world: &impl World) {
        let held = Tag {
            version: promise.version,
            kind: Kind::Promised,
            pid: promise.maker,
        };
        self.expire(promise.entry as usize, held, world);
    }

    fn expire(&self, entry: usize, held: Tag, world: &impl World) {
        if Tag::unpack(self.tag(entry).load()) == held {
            self.since(entry).store(world.now());
            self.change(entry, held, Kind::Expiring, held.pid);
        }
    }

    /// The births of those that live. `None`: cannot be told now.
    pub fn living(&self, world: &impl World) -> Option<Living> {
        let before = self.words[BIRTHS].load();
        let mut births = Vec::new();
        for entry in 0..self.len() {
            births.extend(self.look(entry, world)?);
        }
        births.sort_unstable();
        let unlisted = self.words[UNLISTED].load();
        (self.words[BIRTHS].load() == before).then_some(Living { births, unlisted })
    }

    /// The birth that an entry stands for, if any; frees it when its time is over. The outer
    /// `None`: it is just changing.
    fn look(&self, entry: usize, world: &impl World) -> Option<Option<u64>> {
        let seen = self.tag(entry).load();
        let tag = Tag::unpack(seen);
        let birth = self.birth(entry).load();
        let since = self.since(entry).load();
        let over = match tag.kind {
            Kind::Free => return Some(None),
            Kind::Filling if world.exists(tag.pid) => return None,
            Kind::Filling => true,
            Kind::Promised => {
                if !world.exists(tag.pid) {
                    self.expire(entry, tag, world);
                }
                false
            }
            Kind::Expiring => world.now().saturating_sub(since) > GRACE,
            Kind::Living => !world.exists(tag.pid),
        };
        if over {
            // Also the version changes with the next use, so that this frees what was looked at.
            return self.change(entry, tag, Kind::Free, 0).then_some(None);
        }
        (self.tag(entry).load() == seen || tag.kind == Kind::Promised).then_some(Some(birth))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::collections::HashSet;
    use std::sync::atomic::AtomicU64;

    use super::*;

    #[derive(Default)]
    struct Toy {
        alive: RefCell<HashSet<u32>>,
        now: Cell<u64>,
    }

    impl World for Toy {
        fn exists(&self, pid: u32) -> bool {
            self.alive.borrow().contains(&pid)
        }
        fn now(&self) -> u64 {
            self.now.get()
        }
    }

    fn toy(alive: &[u32]) -> Toy {
        Toy {
            alive: RefCell::new(alive.iter().copied().collect()),
            now: Cell::new(1000),
        }
    }

    fn words(entries: usize) -> Vec<AtomicU64> {
        (0..ENTRIES + entries * ENTRY_WORDS)
            .map(|_| AtomicU64::new(0))
            .collect()
    }

    #[test]
    fn a_living_child_keeps_what_existed_at_its_birth() {
        let (words, world) = (words(4), toy(&[1, 2]));
        let table = Table::new(&words);
        let promise = table.promise(1, 5, false, &world).unwrap();
        assert!(table.keep(promise, 2));
        let living = table.living(&world).unwrap();
        assert!(
            !living.cannot_see(5, 6),
            "made before the birth, freed after"
        );
        assert!(!living.cannot_see(0, 9));
        assert!(living.cannot_see(0, 5), "freed before the birth");
        assert!(living.cannot_see(6, 9), "made after the birth");
        assert!(table.keep(promise, 2), "keeping twice is keeping");
        world.alive.borrow_mut().remove(&2);
        assert!(table.living(&world).unwrap().cannot_see(5, 6));
    }

    #[test]
    fn a_promise_counts_until_it_expires() {
        let (words, world) = (words(4), toy(&[1]));
        let table = Table::new(&words);
        let promise = table.promise(1, 5, true, &world).unwrap();
        world.now.set(100_000);
        assert!(!table.living(&world).unwrap().cannot_see(5, 6), "held");
        table.drop_promise(promise, &world);
        assert!(!table.living(&world).unwrap().cannot_see(5, 6), "in grace");
        world.now.set(100_000 + GRACE + 1);
        assert!(table.living(&world).unwrap().cannot_see(5, 6));
        assert!(!table.keep(promise, 2), "too late");
    }

    #[test]
    fn a_promise_outlives_its_maker_by_the_grace() {
        let (words, world) = (words(4), toy(&[]));
        let table = Table::new(&words);
        let promise = table.promise(1, 5, true, &world).unwrap();
        assert!(!table.living(&world).unwrap().cannot_see(5, 6));
        assert!(table.keep(promise, 2), "the child came after all");
    }

    #[test]
    fn a_full_table_withholds_for_ever() {
        let (words, world) = (words(1), toy(&[1, 2]));
        let table = Table::new(&words);
        let promise = table.promise(1, 5, false, &world).unwrap();
        assert!(table.keep(promise, 2));
        assert!(table.promise(1, 7, false, &world).is_none());
        world.alive.borrow_mut().clear();
        let living = table.living(&world).unwrap();
        assert!(!living.cannot_see(7, 8));
        assert!(living.cannot_see(8, 9));
    }

    #[test]
    fn the_entries_of_the_dead_are_used_again() {
        let (words, world) = (words(1), toy(&[1]));
        let table = Table::new(&words);
        for birth in 0..10 {
            let promise = table.promise(1, birth, false, &world).unwrap();
            assert!(table.keep(promise, 100 + birth as u32));
        }
    }
}

#[cfg(all(test, loom))]
mod models {
    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicU64, Ordering};
    use loom::thread;

    use super::*;
    use crate::ipc::word_model::{ModelWord, check};

    /// Processes 1 to 3, of which one lives if its bit is set.
    struct Model {
        words: Vec<ModelWord>,
        alive: AtomicU64,
    }

    impl World for Model {
        fn exists(&self, pid: u32) -> bool {
            self.alive.load(Ordering::SeqCst) >> pid & 1 != 0
        }
        fn now(&self) -> u64 {
            0
        }
    }

    impl Model {
        fn table(&self) -> Table<'_, ModelWord> {
            Table::new(&self.words)
        }
    }

    /// Process 2 sees what process 1 has freed; it forks process 3 and dies. Whenever 1 looks,
    /// somebody still sees it.
    #[test]
    fn loom_a_line_that_moves_on_is_not_overlooked() {
        check(3, || {
            let words = (0..ENTRIES + 3 * ENTRY_WORDS)
                .map(|_| ModelWord::new(0))
                .collect();
            let model = Arc::new(Model {
                words,
                alive: AtomicU64::new(0b110),
            });
            // The first entry is free again by now, the second is 2's.
            let early = model.table().promise(1, 9, true, &*model).unwrap();
            let second = model.table().promise(1, 5, false, &*model).unwrap();
            assert!(model.table().keep(second, 2));
            assert!(model.table().keep(early, 3));
            let _ = model.table().living(&*model);
            let line = {
                let model = model.clone();
                thread::spawn(move || {
                    let promise = model.table().promise(2, 5, false, &*model).unwrap();
                    model.alive.fetch_or(1 << 3, Ordering::SeqCst);
                    assert!(model.table().keep(promise, 3));
                    model.alive.fetch_and(!(1 << 2), Ordering::SeqCst);
                })
            };
            if let Some(living) = model.table().living(&*model) {
                assert!(!living.cannot_see(5, 6));
            }
            line.join().unwrap();
            assert!(!model.table().living(&*model).unwrap().cannot_see(5, 6));
        });
    }
}
