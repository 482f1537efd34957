//! Which workers sleep, and waking one of them for a task: no wake-up is lost, and none is paid
//! for when nobody sleeps.
//!
//! Process-shared: a bit per worker (set: asleep and to be woken), and a futex word of its own
//! for each. The bit is cleared by the waker, so that two tasks wake two workers, and a worker
//! that has been woken but has not run yet costs the next task no system call.
//!
//! ```text
//!  worker                                   waker, after publishing a task
//!  word = 0; set own bit                    fence
//!  fence                                    find a set bit, clear it by compare-and-swap
//!  look for a task again                    word of that worker = 1, FUTEX_WAKE
//!    found: clear own bit; it was gone? --> the wake-up was meant for another task, pass it on
//!    none:  FUTEX_WAIT(word, 0)
//! ```
//!
//! Both sides have a fence between their store and their look: the worker sees the task or the
//! waker sees the bit. A cleared bit is a promise that its owner will look at the ring again; if
//! its owner dies first, or took another task meanwhile, the promise is passed on (by the engine,
//! which wakes everybody after a death, and by [`leave`]).

use super::atomic::{AtomicU64, Ordering, fence};

/// Where the words are.
pub trait Beds {
    /// How many workers there can be: a multiple of 64.
    fn count(&self) -> usize;
    fn bits(&self, index: usize) -> &AtomicU64;
    fn word(&self, worker: usize) -> &AtomicU64;
}

/// Worker: announces that it is going to sleep. It must look for work once more after this.
pub fn enter<B: Beds>(beds: &B, worker: usize) {
    beds.word(worker).store(0, Ordering::Relaxed);
    beds.bits(worker / 64)
        .fetch_or(1 << (worker % 64), Ordering::SeqCst);
    fence(Ordering::SeqCst);
}

/// Worker, after [`enter`]: it will not sleep. True if a wake-up was on its way that must be
/// passed on if there is more work.
pub fn leave<B: Beds>(beds: &B, worker: usize) -> bool {
    let bit = 1 << (worker % 64);
    beds.bits(worker / 64).fetch_and(!bit, Ordering::SeqCst) & bit == 0
}

/// Waker: takes one sleeper to wake: its word is set, the caller does the FUTEX_WAKE. `None` when
/// nobody sleeps. The caller has published its task before.
pub fn take<B: Beds>(beds: &B) -> Option<usize> {
    fence(Ordering::SeqCst);
    for index in 0..beds.count() / 64 {
        let mut seen = beds.bits(index).load(Ordering::SeqCst);
        while seen != 0 {
            let bit = seen.trailing_zeros() as usize;
            let rest = seen & !(1 << bit);
            match beds
                .bits(index)
                .compare_exchange(seen, rest, Ordering::SeqCst, Ordering::SeqCst)
            {
                Ok(_) => {
                    let worker = index * 64 + bit;
                    beds.word(worker).store(1, Ordering::SeqCst);
                    return Some(worker);
                }
                Err(now) => seen = now,
            }
        }
    }
    None
}

/// Parent: forgets a worker that has died, whatever it was doing.
pub fn forget<B: Beds>(beds: &B, worker: usize) {
    beds.bits(worker / 64)
        .fetch_and(!(1 << (worker % 64)), Ordering::SeqCst);
}

#[cfg(test)]
pub mod testing {
    use super::*;

    pub struct Dormitory {
        pub bits: AtomicU64,
        pub words: Vec<AtomicU64>,
    }

    impl Dormitory {
        pub fn new(n: usize) -> Self {
            Self {
                bits: AtomicU64::new(0),
                words: (0..n).map(|_| AtomicU64::new(0)).collect(),
            }
        }
    }

    impl Beds for Dormitory {
        fn count(&self) -> usize {
            64
        }
        fn bits(&self, _: usize) -> &AtomicU64 {
            &self.bits
        }
        fn word(&self, worker: usize) -> &AtomicU64 {
            &self.words[worker]
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::testing::Dormitory;
    use super::*;

    #[test]
    fn each_task_wakes_another_sleeper() {
        let beds = Dormitory::new(3);
        assert_eq!(take(&beds), None);
        enter(&beds, 0);
        enter(&beds, 2);
        assert_eq!(take(&beds), Some(0));
        assert_eq!(take(&beds), Some(2));
        assert_eq!(take(&beds), None);
        assert!(leave(&beds, 0), "a wake-up was under way");
        enter(&beds, 0);
        assert!(!leave(&beds, 0));
        enter(&beds, 1);
        forget(&beds, 1);
        assert_eq!(take(&beds), None);
    }
}

#[cfg(all(test, loom))]
mod models {
    use loom::sync::Arc;
    use loom::thread;

    use super::super::claim::testing::Ring;
    use super::super::claim::{claim, is_empty, publish};
    use super::testing::Dormitory;
    use super::*;

    struct Model {
        ring: Ring,
        beds: Dormitory,
    }

    /// One round of a worker: true if it would sleep now (FUTEX_WAIT with its word 0), false if it
    /// is busy with a task for ever.
    fn round(m: &Model, who: usize) -> bool {
        if claim(&m.ring, who as u16).is_some() {
            return false;
        }
        loop {
            enter(&m.beds, who);
            if claim(&m.ring, who as u16).is_some() {
                if leave(&m.beds, who) && !is_empty(&m.ring) {
                    take(&m.beds);
                }
                return false;
            }
            if m.beds.word(who).load(Ordering::SeqCst) == 0 {
                return true;
            }
            // woken before it slept: look again
        }
    }

    /// No task may wait while a worker sleeps that nobody has woken. Workers keep what they claim,
    /// which is the worst case: nobody passes by later.
    #[test]
    fn loom_no_task_waits_beside_a_sleeper() {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(|| {
            let m = Arc::new(Model {
                ring: Ring::new(4),
                beds: Dormitory::new(2),
            });
            let peers: Vec<_> = (0..2)
                .map(|who| {
                    let m = m.clone();
                    thread::spawn(move || round(&m, who))
                })
                .collect();
            for position in 0..2 {
                publish(&m.ring, position);
                take(&m.beds);
            }
            let asleep: Vec<bool> = peers.into_iter().map(|p| p.join().unwrap()).collect();
            let unwoken = (0..2)
                .filter(|&w| asleep[w] && m.beds.word(w).load(Ordering::SeqCst) == 0)
                .count();
            let woken = (0..2)
                .filter(|&w| asleep[w] && m.beds.word(w).load(Ordering::SeqCst) == 1)
                .count();
            let mut left = 0;
            while claim(&m.ring, 9).is_some() {
                left += 1;
            }
            assert!(
                left <= woken || unwoken == 0,
                "{left} waiting, {unwoken} asleep"
            );
        });
    }
}
