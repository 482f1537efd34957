//! The lease: who decides the outcome of the task that a worker runs.
//!
//! One process-shared word per worker, `task << 2 | phase`. Whoever moves it out of `Accepted`
//! decides, by compare-and-swap; nobody else may report an outcome for that task.
//!
//! ```text
//!  phase       who moves it on                                       to
//!  ----------  ----------------------------------------------------  ----------------
//!  Idle, Done  the worker, when it has claimed the next task         Accepted(task)
//!  Accepted    the worker, with its result encoded                   Done(task)
//!              (if that could not be sent, it may try another)
//!              the parent: hard limit, cancel, terminate_job         Condemned(task)
//!              the parent, once it saw the worker dead (no swap)     (lost)
//!  Condemned   nobody: the worker is killed (by `terminate_job` only signalled, and killed when
//!              its hard limit passes or it is cancelled), the lane is thrown away
//! ```
//!
//! A worker that dies in `Done` before its result is in the ring has lost the task, too: the
//! parent empties the ring of the dead and calls lost what `Accepted` or `Done` name and no record
//! answers.

use super::atomic::{AtomicU64, Ordering};

/// Task numbers must fit beside the phase.
pub const MAX_TASK: u64 = u64::MAX >> 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Idle,
    Accepted,
    Done,
    Condemned,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    pub task: u64,
    pub phase: Phase,
}

impl Lease {
    const fn word(self) -> u64 {
        self.task << 2
            | match self.phase {
                Phase::Idle => 0,
                Phase::Accepted => 1,
                Phase::Done => 2,
                Phase::Condemned => 3,
            }
    }
}

const fn accepted(task: u64) -> u64 {
    Lease {
        task,
        phase: Phase::Accepted,
    }
    .word()
}

pub fn read(word: &AtomicU64) -> Lease {
    let seen = word.load(Ordering::Acquire);
    let phase = match seen & 3 {
        0 => Phase::Idle,
        1 => Phase::Accepted,
        2 => Phase::Done,
        _ => Phase::Condemned,
    };
    Lease {
        task: seen >> 2,
        phase,
    }
}

/// Worker: the task is mine now. Before the slot is let go of, so that no instant exists at which
/// neither names the worker.
pub fn accept(word: &AtomicU64, task: u64) {
    word.store(accepted(task), Ordering::SeqCst);
}

/// Worker: may I report an outcome? False when the parent has decided already.
pub fn finish(word: &AtomicU64, task: u64) -> bool {
    swap(word, task, Phase::Done)
}

/// Worker: have I reported an outcome, or tried to?
pub fn is_finished(word: &AtomicU64, task: u64) -> bool {
    let finished = Lease {
        task,
        phase: Phase::Done,
    };
    read(word) == finished
}

/// Parent: may I decide? False when the worker has finished this task or runs another.
pub fn condemn(word: &AtomicU64, task: u64) -> bool {
    swap(word, task, Phase::Condemned)
}

/// Parent: has it been decided so already?
pub fn is_condemned(word: &AtomicU64, task: u64) -> bool {
    let condemned = Lease {
        task,
        phase: Phase::Condemned,
    };
    read(word) == condemned
}

fn swap(word: &AtomicU64, task: u64, phase: Phase) -> bool {
    let new = Lease { task, phase }.word();
    word.compare_exchange(accepted(task), new, Ordering::SeqCst, Ordering::Relaxed)
        .is_ok()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_decides_and_only_for_its_task() {
        let word = AtomicU64::new(0);
        assert_eq!(
            read(&word),
            Lease {
                task: 0,
                phase: Phase::Idle
            }
        );
        accept(&word, 5);
        assert!(!condemn(&word, 4));
        assert!(!is_finished(&word, 5));
        assert!(finish(&word, 5));
        assert!(is_finished(&word, 5));
        assert!(!condemn(&word, 5));
        accept(&word, 6);
        assert!(condemn(&word, 6));
        assert!(!finish(&word, 6));
        assert!(!is_finished(&word, 6));
        assert_eq!(
            read(&word),
            Lease {
                task: 6,
                phase: Phase::Condemned
            }
        );
    }
}

#[cfg(all(test, loom))]
mod models {
    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicU64 as Cell, Ordering as O};
    use loom::thread;

    use super::super::claim::testing::Ring;
    use super::super::claim::{claim, claimer, publish, release};
    use super::*;

    /// A worker that dies after `steps` steps of one task, and what it did until then.
    fn worker(ring: &Ring, lease: &AtomicU64, result: &Cell, who: u16, steps: u32) {
        let mut left = steps;
        let mut alive = || {
            left = left.saturating_sub(1);
            left > 0
        };
        let Some(position) = claim(ring, who) else {
            return;
        };
        if !alive() {
            return;
        }
        accept(lease, position + 1);
        if !alive() {
            return;
        }
        release(ring, position, who);
        if !alive() {
            return;
        }
        if !finish(lease, position + 1) || !alive() {
            return;
        }
        result.store(position + 1, O::Release);
    }

    /// Whatever the step at which the worker dies, the task has exactly one end: its result, the
    /// parent's verdict, lost, or another try.
    #[test]
    fn loom_one_outcome_at_every_death() {
        for steps in 1..=5 {
            loom::model(move || {
                let ring = Arc::new(Ring::new(2));
                let lease = Arc::new(AtomicU64::new(0));
                let result = Arc::new(Cell::new(0));
                publish(&*ring, 0);
                let peer = {
                    let (ring, lease, result) = (ring.clone(), lease.clone(), result.clone());
                    thread::spawn(move || worker(&ring, &lease, &result, 1, steps))
                };
                let condemned = condemn(&lease, 1);
                peer.join().unwrap(); // the parent has seen the end of the worker
                let done = result.load(O::Acquire) == 1;
                let seen = read(&lease);
                let named = seen.task == 1 && seen.phase != Phase::Idle;
                let lost = named && !done && !condemned;
                let held = claimer(&*ring, 0) == Some(1);
                if held {
                    assert!(release(&*ring, 0, 1));
                }
                let again = held && !named;
                let outcomes = [done, condemned, lost, again]
                    .iter()
                    .filter(|x| **x)
                    .count();
                assert_eq!(outcomes, 1, "steps {steps}");
            });
        }
    }
}
