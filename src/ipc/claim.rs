//! The claim ring: one producer publishes tasks, many workers claim them, a claimer may die at
//! any instruction.
//!
//! Process-shared words: one state word per slot and a `head` hint. Position `p` lives in slot
//! `p % N` in lap `p / N`; a word is `lap << 20 | claimer << 4 | tag`. All zero is an empty ring.
//!
//! ```text
//!  word of slot p % N     who moves it on                        to
//!  ---------------------  -------------------------------------  ---------------------
//!  Free(lap)              the producer, in order of position     Ready(lap)
//!  Ready(lap)             a worker, by compare-and-swap          Claimed(lap, worker)
//!                         the parent taking a task back          Claimed(lap, PARENT)
//!  Claimed(lap, who)      who, when it has read the task         Free(lap + 1)
//!                         the parent, once it saw who dead       Free(lap + 1)
//! ```
//!
//! The claim is the swap on the slot itself, never the one on `head`: a worker that dies between
//! the two leaves a slot that names it, and the next claimer moves `head` on in its place. `head`
//! is therefore only a hint that never runs ahead of a published task: it passes a position only
//! when that slot was seen claimed or already in its next lap. Nobody reads a tail: `Free` in the
//! lap of `head` (or a claim of the lap before) *is* the end, so no slot state can be older than
//! the tail it was judged by.

use super::atomic::{AtomicU64, Ordering};

/// The claimer's number with which the parent takes tasks back.
pub const PARENT: u16 = u16::MAX;

const FREE: u64 = 0;
const READY: u64 = 1;
const CLAIMED: u64 = 2;

const fn word(lap: u64, who: u16, tag: u64) -> u64 {
    lap << 20 | (who as u64) << 4 | tag
}

/// Where the words are.
pub trait Words {
    /// How many slots: a power of two.
    fn slots(&self) -> u64;
    fn slot(&self, index: u64) -> &AtomicU64;
    fn head(&self) -> &AtomicU64;
}

fn lap<W: Words>(words: &W, position: u64) -> u64 {
    position / words.slots()
}

fn slot<W: Words>(words: &W, position: u64) -> &AtomicU64 {
    words.slot(position & (words.slots() - 1))
}

/// Producer: may `position` be written (has its last user let go of the slot)?
pub fn is_free<W: Words>(words: &W, position: u64) -> bool {
    // Acquire: what the last user read, it has read before we write over it.
    slot(words, position).load(Ordering::Acquire) == word(lap(words, position), 0, FREE)
}

/// Producer: has the task at `position` been taken and let go of?
pub fn is_released<W: Words>(words: &W, position: u64) -> bool {
    slot(words, position).load(Ordering::Acquire) >> 20 > lap(words, position)
}

/// Producer: shows the task written at `position`, which must be free. Positions in order.
pub fn publish<W: Words>(words: &W, position: u64) {
    slot(words, position).store(word(lap(words, position), 0, READY), Ordering::Release);
}

/// Worker: takes the oldest published task; `None` when there is none.
pub fn claim<W: Words>(words: &W, who: u16) -> Option<u64> {
    loop {
        let head = words.head().load(Ordering::Acquire);
        let here = lap(words, head);
        let seen = slot(words, head).load(Ordering::Acquire);
        if seen == word(here, 0, READY) {
            let mine = word(here, who, CLAIMED);
            let swap =
                slot(words, head).compare_exchange(seen, mine, Ordering::AcqRel, Ordering::Relaxed);
            if swap.is_ok() {
                advance(words, head);
                return Some(head);
            }
        } else if seen >> 20 > here || (seen >> 20 == here && seen & 0xf == CLAIMED) {
            advance(words, head);
        } else {
            return None;
        }
    }
}

/// Anyone: moves `head` past a position that is no longer to be had.
fn advance<W: Words>(words: &W, head: u64) {
    let _ = words
        .head()
        .compare_exchange(head, head + 1, Ordering::AcqRel, Ordering::Relaxed);
}

/// Anyone: is there a task to claim? (May be out of date at once.)
pub fn is_empty<W: Words>(words: &W) -> bool {
    loop {
        let head = words.head().load(Ordering::SeqCst);
        let here = lap(words, head);
        let seen = slot(words, head).load(Ordering::SeqCst);
        if seen == word(here, 0, READY) {
            return false;
        }
        if seen >> 20 > here || (seen >> 20 == here && seen & 0xf == CLAIMED) {
            advance(words, head);
        } else {
            return true;
        }
    }
}

/// Parent: takes the task at `position` back before a worker claims it.
pub fn withdraw<W: Words>(words: &W, position: u64) -> bool {
    let here = lap(words, position);
    slot(words, position)
        .compare_exchange(
            word(here, 0, READY),
            word(here, PARENT, CLAIMED),
            Ordering::AcqRel,
            Ordering::Relaxed,
        )
        .is_ok()
}

/// Who claimed `position` and has not let go of it yet.
pub fn claimer<W: Words>(words: &W, position: u64) -> Option<u16> {
    let seen = slot(words, position).load(Ordering::Acquire);
    (seen >> 20 == lap(words, position) && seen & 0xf == CLAIMED).then_some((seen >> 4) as u16)
}

/// The claimer, or the parent for a dead one: lets go of a slot whose task has been read.
pub fn release<W: Words>(words: &W, position: u64, who: u16) -> bool {
    let here = lap(words, position);
    slot(words, position)
        .compare_exchange(
            word(here, who, CLAIMED),
            word(here + 1, 0, FREE),
            Ordering::AcqRel,
            Ordering::Relaxed,
        )
        .is_ok()
}

#[cfg(test)]
pub mod testing {
    use super::*;

    pub struct Ring {
        pub head: AtomicU64,
        pub slots: Vec<AtomicU64>,
    }

    impl Ring {
        pub fn new(n: usize) -> Self {
            Self {
                head: AtomicU64::new(0),
                slots: (0..n).map(|_| AtomicU64::new(0)).collect(),
            }
        }
    }

    impl Words for Ring {
        fn slots(&self) -> u64 {
            self.slots.len() as u64
        }
        fn slot(&self, index: u64) -> &AtomicU64 {
            &self.slots[index as usize]
        }
        fn head(&self) -> &AtomicU64 {
            &self.head
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::testing::Ring;
    use super::*;

    #[test]
    fn tasks_come_in_order_and_slots_are_used_again() {
        let ring = Ring::new(2);
        for position in 0..10 {
            assert!(is_free(&ring, position));
            assert_eq!(claim(&ring, 1), None);
            publish(&ring, position);
            assert!(!is_empty(&ring));
            assert_eq!(claim(&ring, 1), Some(position));
            assert_eq!(claimer(&ring, position), Some(1));
            assert!(!is_free(&ring, position + 2));
            assert!(release(&ring, position, 1));
            assert!(is_released(&ring, position));
            assert!(!release(&ring, position, 1));
        }
    }

    #[test]
    fn a_claimer_that_dies_before_moving_the_head_stops_nobody() {
        let ring = Ring::new(4);
        publish(&ring, 0);
        publish(&ring, 1);
        // what `claim` does up to its death
        ring.slots[0].store(word(0, 7, CLAIMED), Ordering::Relaxed);
        assert_eq!(claim(&ring, 1), Some(1));
        assert_eq!(claimer(&ring, 0), Some(7));
        assert!(release(&ring, 0, 7));
        assert!(is_free(&ring, 4));
    }

    #[test]
    fn a_slow_claimer_is_waited_for_a_lap_later() {
        let ring = Ring::new(2);
        publish(&ring, 0);
        assert_eq!(claim(&ring, 1), Some(0));
        publish(&ring, 1);
        assert_eq!(claim(&ring, 2), Some(1));
        release(&ring, 1, 2);
        assert!(!is_free(&ring, 2));
        assert_eq!(claim(&ring, 2), None);
        assert!(is_empty(&ring));
    }

    #[test]
    fn withdrawn_tasks_are_passed_over() {
        let ring = Ring::new(4);
        publish(&ring, 0);
        publish(&ring, 1);
        assert!(withdraw(&ring, 0));
        assert!(!withdraw(&ring, 0));
        assert!(release(&ring, 0, PARENT));
        assert_eq!(claim(&ring, 1), Some(1));
        assert!(!withdraw(&ring, 1));
    }
}

#[cfg(all(test, loom))]
#[allow(unsafe_code)] // loom's cells check every access to the payload
mod models {
    use loom::sync::Arc;
    use loom::thread;

    use super::testing::Ring;
    use super::*;

    /// Payload cells prove that a claimer reads what was published for it and nothing later.
    struct Model {
        ring: Ring,
        cells: Vec<loom::cell::UnsafeCell<u64>>,
    }

    fn model(n: usize) -> Arc<Model> {
        Arc::new(Model {
            ring: Ring::new(n),
            cells: (0..n).map(|_| loom::cell::UnsafeCell::new(0)).collect(),
        })
    }

    fn produce(m: &Model, position: u64) -> bool {
        if !is_free(&m.ring, position) {
            return false;
        }
        let cell = &m.cells[position as usize % m.cells.len()];
        // SAFETY: loom panics if anyone else uses the cell now.
        cell.with_mut(|c| unsafe { *c = position + 100 });
        publish(&m.ring, position);
        true
    }

    fn consume(m: &Model, who: u16) -> Option<u64> {
        let position = claim(&m.ring, who)?;
        let cell = &m.cells[position as usize % m.cells.len()];
        // SAFETY: loom panics if anyone writes the cell now.
        assert_eq!(cell.with(|c| unsafe { *c }), position + 100);
        assert!(release(&m.ring, position, who));
        Some(position)
    }

    #[test]
    fn loom_every_task_is_claimed_once() {
        loom::model(|| {
            let m = model(2);
            assert!(produce(&m, 0));
            let peers: Vec<_> = (1..=2)
                .map(|who| {
                    let m = m.clone();
                    thread::spawn(move || consume(&m, who))
                })
                .collect();
            let mut published = 2;
            assert!(produce(&m, 1));
            if produce(&m, 2) {
                published = 3;
            }
            let mut got: Vec<u64> = peers
                .into_iter()
                .filter_map(|p| p.join().unwrap())
                .collect();
            while let Some(position) = consume(&m, 3) {
                got.push(position);
            }
            got.sort_unstable();
            assert_eq!(got, (0..published).collect::<Vec<_>>());
        });
    }

    #[test]
    fn loom_a_withdrawal_and_a_claim_have_one_winner() {
        loom::model(|| {
            let m = model(2);
            assert!(produce(&m, 0));
            let peer = {
                let m = m.clone();
                thread::spawn(move || consume(&m, 1).is_some())
            };
            let withdrawn = withdraw(&m.ring, 0) && release(&m.ring, 0, PARENT);
            assert!(withdrawn != peer.join().unwrap());
        });
    }
}
