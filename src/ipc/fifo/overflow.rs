//! How many messages processes have put that are still in their own memory.
//!
//! They count as being in the queue. Each process has an entry with its name, so that what a dead
//! one had is not counted for ever.
//!
//! ```text
//!  entry         who                                         to
//!  ------------  ------------------------------------------  --------------------------
//!  free          a process that holds W_LOCK                 its name, 0
//!  name, n       that process                                name, n ± 1
//!                who sees it dead, while it holds W_LOCK     free
//! ```
//! A process that finds no free entry counts in a word that all such processes share, and that
//! keeps what a dead one had. Entries are many more than processes that have an overflow at once.

use crate::ipc::word::Word;
use crate::sys::life::Identity;

/// Entries ever used.
const USED: usize = 0;
const SHARED: usize = 1;
const ENTRIES: usize = 2;
pub const WORDS: usize = ENTRIES + 2 * 63;

/// The words: all zero at first. *Process-shared*.
#[derive(Clone, Copy, Debug)]
pub struct Table<'a, W>(pub &'a [W]);

fn name(who: Identity) -> u64 {
    u64::from(who.stamp) << 32 | u64::from(who.pid)
}

fn identity(name: u64) -> Identity {
    Identity {
        pid: name as u32,
        stamp: (name >> 32) as u32,
    }
}

/// Where a process counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place(usize);

impl<W: Word> Table<'_, W> {
    fn entries(&self) -> impl Iterator<Item = (usize, &W, &W)> {
        let used = (self.0[USED].load() as usize).min((self.0.len() - ENTRIES) / 2);
        (0..used).map(|entry| {
            let at = ENTRIES + entry * 2;
            (at, &self.0[at], &self.0[at + 1])
        })
    }

    /// For the holder of `W_LOCK`: an entry for this process, as long as it lives.
    pub fn enter(&self, me: Identity, runs: impl Fn(Identity) -> bool) -> Place {
        self.fill(me)
            .or_else(|| {
                self.bury(runs);
                self.fill(me)
            })
            .unwrap_or(Place(SHARED))
    }

    fn fill(&self, me: Identity) -> Option<Place> {
        let all = (self.0.len() - ENTRIES) / 2;
        let free = (0..all).find(|entry| self.0[ENTRIES + entry * 2].load() == 0)?;
        let at = ENTRIES + free * 2;
        // In this order: what the last owner had is never counted as ours.
        self.0[at + 1].store(0);
        self.0[at].store(name(me));
        let _ = self.0[USED].update(|used| {
            let reached = free as u64 + 1;
            (used < reached).then_some(reached)
        });
        Some(Place(at + 1))
    }

    pub fn add(&self, place: Place, count: u32) {
        let _ = self.0[place.0].update(|now| Some(now.wrapping_add(count.into())));
    }

    pub fn sub(&self, place: Place, count: u32) {
        let _ = self.0[place.0].update(|now| Some(now.saturating_sub(count.into())));
    }

    /// How many there are in all.
    #[inline]
    pub fn total(&self) -> u32 {
        if self.0[USED].load() == 0 {
            return 0;
        }
        let listed = self.entries().filter(|(_, name, _)| name.load() != 0);
        let sum: u64 = listed.map(|(_, _, count)| count.load()).sum();
        (sum + self.0[SHARED].load()) as u32
    }

    /// For the holder of `W_LOCK`: forgets the entries of the dead; whether there were any that had something.
    pub fn bury(&self, runs: impl Fn(Identity) -> bool) -> bool {
        let mut found = false;
        for (_, word, count) in self.entries() {
            let seen = word.load();
            if seen != 0 && !runs(identity(seen)) {
                found |= count.load() != 0;
                word.store(0);
            }
        }
        found
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    fn someone(pid: u32) -> Identity {
        Identity { pid, stamp: 1 }
    }

    #[test]
    fn what_the_dead_had_is_forgotten() {
        let words: Vec<_> = (0..WORDS).map(|_| AtomicU64::new(0)).collect();
        let table = Table(&words);
        assert_eq!(table.total(), 0);
        let enter = |pid| table.enter(someone(pid), |_| true);
        let (one, two) = (enter(1), enter(2));
        table.add(one, 3);
        table.add(two, 4);
        table.sub(two, 1);
        assert_eq!(table.total(), 6);
        assert!(table.bury(|who| who.pid != 1));
        assert_eq!(table.total(), 3);
        assert!(!table.bury(|who| who.pid != 1));
        assert_eq!(enter(3), one, "its entry is used again");
        assert_eq!(table.total(), 3);
    }

    #[test]
    fn those_who_find_no_entry_share_a_word() {
        let words: Vec<_> = (0..ENTRIES + 2).map(|_| AtomicU64::new(0)).collect();
        let table = Table(&words);
        let one = table.enter(someone(1), |_| true);
        let two = table.enter(someone(2), |_| true);
        let three = table.enter(someone(3), |_| true);
        assert_ne!(one, two);
        table.add(two, 1);
        table.add(three, 1);
        assert_eq!(table.total(), 2);
        table.sub(three, 1);
        assert_eq!(table.total(), 1);
        assert_eq!(table.enter(someone(4), |who| who.pid != 1), one);
    }
}
