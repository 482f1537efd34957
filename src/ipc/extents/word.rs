//! The word of an extent: whose it is at the moment.
//!
//! *Process-shared*: the generation of the message in the upper half, who has it in the lower one
//! (a holder's number plus one; zero is nobody). All zero is an extent that was never used.
//!
//! ```text
//!  word              who moves it on                                      to
//!  ----------------  ---------------------------------------------------  ----------------
//!  Free(g)           the sender, when all is written: send                Sent(g + 1)
//!  Sent(g)           a receiver that has read the reference: take         Held(g, receiver)
//!                    the sender, as nobody will ever read it: recall      Free(g)
//!  Held(g, who)      who, when it has no view of it any more: release     Free(g)
//!                    the sender, once it saw who dead: reclaim            Free(g)
//! ```
//!
//! Every step out of `Sent` and `Held` is a compare-and-swap that names the generation, so each
//! message is freed exactly once, and who comes late (a receiver with the reference of a message
//! that was recalled, a release of what was reclaimed) changes nothing. While the sender writes,
//! the word still says `Free`: only the sender's own books say that the extent is in use, and a
//! reference from before finds nothing to take.
//!
//! `release` and `reclaim` are releases, and the sender's look at the word is an acquire: what a
//! receiver read, it has read before it is written over. A receiver that was seen dead reads
//! nothing any more.

use crate::ipc::word::Word;

/// The number of the sender among the holders.
pub const SENDER: u32 = u32::MAX - 1;

const fn pack(generation: u32, holder: u32) -> u64 {
    (generation as u64) << 32 | (holder as u64 + 1)
}

const fn free(generation: u32) -> u64 {
    (generation as u64) << 32
}

fn generation(word: u64) -> u32 {
    (word >> 32) as u32
}

/// What a receiver has taken. Goes to [`release`], or to nobody when it dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held(u64);

/// Sender: shows what it has written as message `generation`.
pub fn send(word: &impl Word, generation: u32) {
    word.store(pack(generation, SENDER));
}

/// Sender: takes back what nobody has taken and nobody will. False when somebody has.
pub fn recall(word: &impl Word, generation: u32) -> bool {
    word.compare_exchange(pack(generation, SENDER), free(generation))
        .is_ok()
}

/// Sender: has message `generation` been let go of?
pub fn is_back(word: &impl Word, generation: u32) -> bool {
    word.load() == free(generation)
}

/// Receiver: takes the message whose generation ends in these bits. `None`: there is no such
/// message, or it has been taken.
pub fn take(word: &impl Word, ending: u16, holder: u32) -> Option<Held> {
    let seen = word.load();
    let sent = pack(generation(seen), SENDER);
    let mine = pack(generation(seen), holder);
    if seen != sent || generation(seen) as u16 != ending {
        return None;
    }
    word.compare_exchange(sent, mine).ok().map(|_| Held(mine))
}

/// Receiver: lets go. False if it was taken away, which is not possible while the receiver lives.
pub fn release(word: &impl Word, held: Held) -> bool {
    word.compare_exchange(held.0, free(generation(held.0)))
        .is_ok()
}

/// Sender: frees what a dead holder had. False if it was not that holder's.
pub fn reclaim(word: &impl Word, holder: u32) -> bool {
    let seen = word.load();
    seen == pack(generation(seen), holder)
        && word.compare_exchange(seen, free(generation(seen))).is_ok()
}

/// Who has it, if anybody has.
pub fn holder(word: &impl Word) -> Option<u32> {
    (word.load() as u32).checked_sub(1)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    #[test]
    fn a_message_goes_round_once() {
        let word = AtomicU64::new(0);
        assert!(is_back(&word, 0) && holder(&word).is_none());
        send(&word, 1);
        assert_eq!(holder(&word), Some(SENDER));
        assert_eq!(take(&word, 2, 7), None);
        let held = take(&word, 1, 7).unwrap();
        assert_eq!(take(&word, 1, 8), None);
        assert!(!recall(&word, 1) && !reclaim(&word, 8) && !is_back(&word, 1));
        assert!(release(&word, held));
        assert!(is_back(&word, 1) && !release(&word, held) && !reclaim(&word, 7));
    }

    #[test]
    fn an_old_reference_finds_nothing() {
        let word = AtomicU64::new(0);
        send(&word, 1);
        assert!(recall(&word, 1));
        assert_eq!(take(&word, 1, 7), None);
        send(&word, 2);
        assert_eq!(take(&word, 1, 7), None);
        assert!(!recall(&word, 1));
        assert!(take(&word, 2, 7).is_some());
    }

    #[test]
    fn generations_wrap() {
        let word = AtomicU64::new(0);
        send(&word, u32::MAX);
        let held = take(&word, u16::MAX, 0).unwrap();
        assert_eq!(holder(&word), Some(0));
        assert!(release(&word, held) && is_back(&word, u32::MAX));
        send(&word, 0);
        assert!(take(&word, 0, 0).is_some());
    }
}

#[cfg(all(test, loom))]
#[allow(unsafe_code)] // loom's cells check every access to the extent
mod models {
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::thread;

    use super::*;
    use crate::ipc::word_model::ModelWord;

    struct Extent {
        word: ModelWord,
        bytes: UnsafeCell<u32>,
    }

    fn extent() -> Arc<Extent> {
        Arc::new(Extent {
            word: ModelWord::new(0),
            bytes: UnsafeCell::new(0),
        })
    }

    /// Writes and sends if the last message is back.
    fn produce(extent: &Extent, generation: u32) -> bool {
        if !is_back(&extent.word, generation - 1) {
            return false;
        }
        // SAFETY: loom panics if anyone else uses the cell now.
        extent
            .bytes
            .with_mut(|bytes| unsafe { *bytes = generation });
        send(&extent.word, generation);
        true
    }

    fn read(extent: &Extent, generation: u32) {
        // SAFETY: loom panics if anyone writes the cell now.
        assert_eq!(extent.bytes.with(|bytes| unsafe { *bytes }), generation);
    }

    fn consume(extent: &Extent, generation: u32, who: u32) -> bool {
        let Some(held) = take(&extent.word, generation as u16, who) else {
            return false;
        };
        read(extent, generation);
        assert!(release(&extent.word, held));
        true
    }

    /// What is being read is never written over, and a message has one reader.
    #[test]
    fn loom_an_extent_in_use_is_not_used_again() {
        loom::model(|| {
            let extent = extent();
            assert!(produce(&extent, 1));
            let peers: Vec<_> = (0..2)
                .map(|who| {
                    let extent = extent.clone();
                    thread::spawn(move || consume(&extent, 1, who))
                })
                .collect();
            let again = produce(&extent, 2);
            let readers = peers
                .into_iter()
                .map(|peer| u32::from(peer.join().unwrap()))
                .sum::<u32>();
            assert_eq!(readers, 1);
            assert!(again || produce(&extent, 2));
            assert!(consume(&extent, 2, 0));
        });
    }

    /// A recall and a receiver have one winner, and an extent that was recalled and used again is
    /// not touched by who had the old reference.
    #[test]
    fn loom_a_recall_and_a_take_have_one_winner() {
        loom::model(|| {
            let extent = extent();
            assert!(produce(&extent, 1));
            let peer = {
                let extent = extent.clone();
                thread::spawn(move || consume(&extent, 1, 0))
            };
            let recalled = recall(&extent.word, 1);
            if recalled {
                assert!(produce(&extent, 2));
            }
            assert!(recalled != peer.join().unwrap());
        });
    }

    /// Whatever the step at which a receiver dies, its extent comes back exactly once.
    #[test]
    fn loom_a_dead_receiver_gives_back_once() {
        for steps in 0..=3 {
            loom::model(move || {
                let extent = extent();
                assert!(produce(&extent, 1));
                let peer = {
                    let extent = extent.clone();
                    thread::spawn(move || {
                        let held = (steps > 0).then(|| take(&extent.word, 1, 0)).flatten();
                        if let Some(held) = held {
                            if steps > 1 {
                                read(&extent, 1);
                            }
                            return steps > 2 && release(&extent.word, held);
                        }
                        false
                    })
                };
                let early = recall(&extent.word, 1);
                let released = peer.join().unwrap(); // the sender has seen the end of it
                let reclaimed = reclaim(&extent.word, 0);
                let recalled = early || recall(&extent.word, 1);
                let times = [released, reclaimed, recalled]
                    .iter()
                    .filter(|x| **x)
                    .count();
                assert_eq!(times, 1, "steps {steps}");
                assert!(produce(&extent, 2));
            });
        }
    }
}
