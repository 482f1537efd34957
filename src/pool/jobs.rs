//! Who waits for the outcome of a task.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::message::Outcome;
use crate::sys::mutex::Mutex;

/// Whose task it is.
#[derive(Debug, Clone)]
pub enum Owner {
    /// A single call, whose caller takes the outcome from the cell.
    Cell(Arc<Cell>),
    /// An item of a sequence.
    Item(Arc<Sequence>, u64),
    /// A job of the book, which is told by messages: its number, and that of the task in it
    /// (negative: it has no other).
    Book(i64, i64),
}

/// The place of one outcome. Process-local. The mutexes here are held for an instant, never while
/// something is dropped or waited for; a forked child does not use its copy.
#[derive(Debug, Default)]
pub struct Cell {
    done: AtomicBool,
    task: AtomicU64,
    outcome: Mutex<Option<Outcome>>,
}

impl Cell {
    pub fn is_done(&self) -> bool {
        self.done.load(Ordering::Acquire)
    }

    /// The number of its task, 0 before it has one.
    pub fn task(&self) -> u64 {
        self.task.load(Ordering::Relaxed)
    }

    pub fn set_task(&self, task: u64) {
        self.task.store(task, Ordering::Relaxed);
    }

    /// The first outcome is the outcome; a later one is given back.
    pub fn set(&self, outcome: Outcome) -> Option<Outcome> {
        let mut place = self.outcome.lock();
        if self.is_done() {
            return Some(outcome);
        }
        *place = Some(outcome);
        self.done.store(true, Ordering::Release);
        None
    }

    /// Takes an outcome back that [`take`](Self::take) gave.
    pub fn put_back(&self, outcome: Outcome) {
        self.outcome.lock().get_or_insert(outcome);
    }

    /// Takes the outcome out; once.
    pub fn take(&self) -> Option<Outcome> {
        self.outcome.lock().take()
    }
}

/// The outcomes of a sequence of tasks, to be taken one at a time. Process-local, as [`Cell`].
#[derive(Debug)]
pub struct Sequence {
    ordered: bool,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// What can be taken. In an ordered one: from number `first` on, with gaps.
    ready: VecDeque<Option<Outcome>>,
    first: u64,
    /// How many have arrived, in all.
    arrived: u64,
    /// How many there will be; not known yet while tasks are still being submitted.
    length: Option<u64>,
    /// All that were to come have come or will not.
    ended: bool,
}

/// What a sequence has for its caller.
#[derive(Debug)]
pub enum Next {
    Item(Outcome),
    NotYet,
    End,
}

impl Sequence {
    pub fn new(ordered: bool) -> Self {
        Self {
            ordered,
            inner: Mutex::default(),
        }
    }

    /// The outcome of number `i`. Gives back what comes too late.
    pub fn put(&self, i: u64, outcome: Outcome) -> Option<Outcome> {
        let mut inner = self.inner.lock();
        if inner.ended {
            return Some(outcome);
        }
        if self.ordered {
            let Some(at) = i.checked_sub(inner.first).map(|at| at as usize) else {
                return Some(outcome);
            };
            while inner.ready.len() <= at {
                inner.ready.push_back(None);
            }
            if inner.ready[at].is_some() {
                return Some(outcome);
            }
            inner.ready[at] = Some(outcome);
        } else {
            inner.ready.push_back(Some(outcome));
        }
        inner.arrived += 1;
        inner.ended = inner.length == Some(inner.arrived);
        None
    }

    /// There are so many tasks.
    pub fn set_length(&self, length: u64) {
        let mut inner = self.inner.lock();
        inner.length = Some(length);
        inner.ended |= inner.arrived == length;
    }

    /// Nothing more will come: `outcome` is the last, at the place of the first that is missing.
    /// Gives back what nobody will take.
    pub fn abandon(&self, outcome: Outcome) -> VecDeque<Option<Outcome>> {
        let mut inner = self.inner.lock();
        if inner.ended {
            return VecDeque::from([Some(outcome)]);
        }
        inner.ended = true;
        let due = inner
            .ready
            .iter()
            .take_while(|place| place.is_some())
            .count();
        let rest = inner.ready.split_off(due);
        inner.ready.push_back(Some(outcome));
        rest
    }

    pub fn next(&self) -> Next {
        let mut inner = self.inner.lock();
        if let Some(place) = inner.ready.front_mut() {
            if let Some(outcome) = place.take() {
                inner.ready.pop_front();
                inner.first += 1;
                return Next::Item(outcome);
            }
        } else if inner.ended {
            return Next::End;
        }
        Next::NotYet
    }

    /// Takes an item back that [`next`](Self::next) gave: it will be the next again.
    pub fn put_back(&self, outcome: Outcome) {
        let mut inner = self.inner.lock();
        inner.ready.push_front(Some(outcome));
        inner.first = inner.first.saturating_sub(1);
    }

    /// Would [`next`](Self::next) give something, or the end?
    pub fn has_next(&self) -> bool {
        let inner = self.inner.lock();
        match inner.ready.front() {
            Some(place) => place.is_some(),
            None => inner.ended,
        }
    }

    /// Whether everything has arrived.
    pub fn is_ended(&self) -> bool {
        self.inner.lock().ended
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::Body;
    use super::*;

    fn outcome(n: u8) -> Outcome {
        Outcome::Sent(true, Body::copy(&[n]))
    }

    fn number(next: Next) -> Option<u8> {
        match next {
            Next::Item(Outcome::Sent(true, Body::Short(1, bytes))) => Some(bytes[0]),
            _ => None,
        }
    }

    #[test]
    fn the_first_outcome_is_the_outcome() {
        let cell = Cell::default();
        assert!(!cell.is_done());
        assert!(cell.set(outcome(1)).is_none());
        assert!(cell.is_done());
        assert!(cell.set(outcome(2)).is_some());
        assert!(cell.take().is_some());
        assert!(cell.take().is_none());
        assert!(cell.set(outcome(3)).is_some(), "taken, but still done");
    }

    #[test]
    fn an_ordered_sequence_waits_for_what_is_due() {
        let seq = Sequence::new(true);
        seq.put(1, outcome(1));
        assert!(matches!(seq.next(), Next::NotYet));
        seq.put(0, outcome(0));
        assert!(seq.put(0, outcome(9)).is_some());
        assert_eq!(number(seq.next()), Some(0));
        assert_eq!(number(seq.next()), Some(1));
        assert!(seq.put(1, outcome(9)).is_some());
        assert!(matches!(seq.next(), Next::NotYet));
        seq.set_length(2);
        assert!(matches!(seq.next(), Next::End));
    }

    #[test]
    fn what_is_put_back_comes_again() {
        let seq = Sequence::new(true);
        seq.put(0, outcome(0));
        seq.put(1, outcome(1));
        let Next::Item(first) = seq.next() else {
            panic!("it is there");
        };
        seq.put_back(first);
        seq.put(2, outcome(2));
        seq.set_length(3);
        for n in 0..3 {
            assert_eq!(number(seq.next()), Some(n));
        }
        assert!(matches!(seq.next(), Next::End));
    }

    #[test]
    fn an_unordered_one_does_not() {
        let seq = Sequence::new(false);
        seq.set_length(2);
        seq.put(1, outcome(1));
        assert_eq!(number(seq.next()), Some(1));
        assert!(!seq.is_ended());
        seq.put(0, outcome(0));
        assert!(seq.is_ended());
        assert_eq!(number(seq.next()), Some(0));
        assert!(matches!(seq.next(), Next::End));
    }

    #[test]
    fn an_abandoned_one_ends_where_the_first_is_missing() {
        let seq = Sequence::new(true);
        seq.put(0, outcome(0));
        seq.put(2, outcome(2));
        assert_eq!(
            seq.abandon(outcome(7)).len(),
            2,
            "a gap and what came after it"
        );
        assert_eq!(number(seq.next()), Some(0));
        assert_eq!(number(seq.next()), Some(7));
        assert!(matches!(seq.next(), Next::End));
        assert!(seq.put(1, outcome(1)).is_some());
    }
}
