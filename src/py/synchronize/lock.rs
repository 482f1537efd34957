//! What a lock is made of: its word in shared memory, and what this process knows of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};

use pyo3::exceptions::{PyAssertionError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;

use super::wait_for;
use crate::ipc::arena::Block;
use crate::ipc::condition::Condition;
use crate::ipc::owned::{self, Got};
use crate::ipc::semaphore;
use crate::ipc::spin::{self, Spinner};
use crate::py::block::Deadline;
use crate::sys::cpu::many_cpus;
use crate::sys::fork::ForkLock;
use crate::sys::memory::LineRef;
use crate::sys::{clock, fork, life};

pyo3::import_exception!(billiard.exceptions, OwnerDiedError);

/// What a lock is. The numbers are known to Python; those above 1 are ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Its owner may acquire it again; who gets it from a dead owner is told.
    RecursiveMutex = 0,
    /// Anyone may release it.
    Semaphore = 1,
    /// A mutex of the package's own. Whoever gets it from a dead owner is not told; a thread that
    /// would wait for itself (in a signal handler) is told so.
    InternalMutex = 2,
    /// Any thread of its owner may release it; who gets it from a dead owner is told.
    RobustMutex = 3,
}

impl Kind {
    pub fn new(number: i32) -> PyResult<Self> {
        match number {
            0 => Ok(Self::RecursiveMutex),
            1 => Ok(Self::Semaphore),
            2 => Ok(Self::InternalMutex),
            3 => Ok(Self::RobustMutex),
            _ => Err(PyValueError::new_err("unrecognized kind")),
        }
    }
}

/// Milliseconds between looks for a dead owner of who only tries.
const LOOK_EVERY: u64 = 50;

/// The words of a lock in its line.
const WORD: usize = 0;
/// Of a recursive mutex, written by who holds it: the thread, and how often it holds it.
const THREAD: usize = 1;
const DEPTH: usize = 2;

/// What an initialised [`SemLock`] has.
#[derive(Debug)]
pub struct Parts {
    pub block: Arc<Block>,
    line: LineRef,
    pub kind: Kind,
    pub max: u32,
    /// Acquisitions minus releases of this object, and the thread of the last acquisition: a
    /// semaphore's owner, as far as it has one, is known to its process only. Changed with the
    /// GIL held.
    count: AtomicI64,
    thread: AtomicU64,
    /// the fork generation that these are of; in a later one they are zero
    generation: AtomicU32,
    /// Whom to wake when the lock is free: waiters of conditions whose notifier still holds it
    /// would only run into it.
    deferred: ForkLock<Vec<Deferred>>,
    has_deferred: AtomicBool,
    /// when a dead owner was last looked for, in milliseconds
    looked: AtomicU64,
    spinner: Spinner,
}

/// A wake-up of so many sleepers of a condition.
#[derive(Debug)]
struct Deferred {
    line: LineRef,
    count: u32,
}

impl Parts {
    pub fn new(block: Arc<Block>, kind: Kind, max: u32) -> Self {
        Self {
            line: block.line(),
            block,
            kind,
            max,
            count: AtomicI64::new(0),
            thread: AtomicU64::new(0),
            generation: AtomicU32::new(fork::generation()),
            deferred: ForkLock::new(Vec::new()),
            has_deferred: AtomicBool::new(false),
            looked: AtomicU64::new(0),
            spinner: Spinner::default(),
        }
    }

    /// Gives a new semaphore its value.
    pub fn start_with(&self, value: u32) {
        self.line[WORD].store(u64::from(value), Ordering::Release);
    }

    /// Forgets what this process has acquired of a semaphore.
    pub fn forget(&self) {
        self.count.store(0, Ordering::Relaxed);
    }

    /// Wakes `count` waiters of the condition in `line` when this lock has been released.
    pub fn defer(&self, line: &LineRef, count: u32) {
        self.deferred.lock().push(Deferred {
            line: line.clone(),
            count,
        });
        self.has_deferred.store(true, Ordering::Relaxed);
    }

    #[cold]
    fn wake_deferred(&self) {
        self.has_deferred.store(false, Ordering::Relaxed);
        let deferred = std::mem::take(&mut *self.deferred.lock());
        for Deferred { line, count } in deferred {
            Condition(&line[..]).wake(count);
        }
    }

    #[inline]
    pub fn count(&self) -> i64 {
        if self.kind != Kind::Semaphore {
            let ours = owned::is_held_by(&self.line[WORD], life::me());
            return if ours {
                self.line[DEPTH].load(Ordering::Relaxed) as i64
            } else {
                0
            };
        }
        if self.generation.load(Ordering::Relaxed) != fork::generation() {
            return 0;
        }
        self.count.load(Ordering::Relaxed)
    }

    #[inline]
    fn add(&self, change: i64) {
        let now = fork::generation();
        if self.generation.load(Ordering::Relaxed) != now {
            self.count.store(0, Ordering::Relaxed);
            self.generation.store(now, Ordering::Relaxed);
        }
        let count = self.count.load(Ordering::Relaxed);
        self.count
            .store(count.wrapping_add(change), Ordering::Relaxed);
    }

    #[inline]
    pub fn is_mine(&self) -> bool {
        if self.kind != Kind::Semaphore {
            return owned::is_held_by(&self.line[WORD], life::me())
                && self.line[THREAD].load(Ordering::Relaxed) == life::thread();
        }
        self.count() > 0 && self.thread.load(Ordering::Relaxed) == life::thread()
    }

    pub fn value(&self) -> u32 {
        if self.kind != Kind::Semaphore {
            return u32::from(owned::is_free(&self.line[WORD]));
        }
        semaphore::value(&self.line[WORD])
    }

    #[inline]
    pub fn try_acquire(&self) -> bool {
        if self.kind != Kind::Semaphore {
            return self.try_acquire_mutex();
        }
        let got = semaphore::try_acquire(&self.line[WORD]);
        if got {
            self.note_acquired();
        }
        got
    }

    fn try_acquire_mutex(&self) -> bool {
        if self.kind == Kind::RecursiveMutex && self.is_mine() {
            let depth = self.line[DEPTH].load(Ordering::Relaxed);
            self.line[DEPTH].store(depth + 1, Ordering::Relaxed);
            return true;
        }
        let got = owned::try_acquire(&self.line[WORD], life::me());
        if got {
            self.note_owned();
        }
        got
    }

    #[inline]
    fn note_acquired(&self) {
        self.add(1);
        self.thread.store(life::thread(), Ordering::Relaxed);
    }

    #[inline]
    fn note_owned(&self) {
        self.line[THREAD].store(life::thread(), Ordering::Relaxed);
        self.line[DEPTH].store(1, Ordering::Relaxed);
    }

    /// Acquires what could not be had at once.
    #[cold]
    pub fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let deadline = Deadline::after(timeout)?;
        let word = &self.line[WORD];
        let spinner = (&self.spinner, spin::BRIEF);
        if self.kind == Kind::Semaphore {
            let look = || semaphore::try_acquire(word).then_some(true);
            let sleep = |left| semaphore::wait(word, left);
            let got = wait_for(py, deadline, spinner, many_cpus, look, sleep)?;
            if got {
                self.note_acquired();
            }
            return Ok(got);
        }
        if self.kind == Kind::InternalMutex && timeout.is_none() && self.is_mine() {
            return Err(PyRuntimeError::new_err(
                "this thread holds the lock already: it was interrupted by a signal handler",
            ));
        }
        let me = life::me();
        let look = || owned::try_acquire(word, me).then_some(Got::Free);
        let sleep = |left| owned::wait(word, me, left, life::runs);
        let got = wait_for(py, deadline, spinner, many_cpus, look, sleep)?;
        self.note_got(got)
    }

    /// What is left to do when it could not be had at once and the caller will not wait: who only
    /// ever tries has to find a dead owner too. Looked for now and then, because it takes a while.
    #[cold]
    pub fn try_again(&self) -> PyResult<bool> {
        let now = clock::now().as_millis() as u64;
        let last = self.looked.load(Ordering::Relaxed);
        if self.kind == Kind::Semaphore || now < last + LOOK_EVERY {
            return Ok(false);
        }
        self.looked.store(now, Ordering::Relaxed);
        let taken = owned::take_from_dead(&self.line[WORD], life::me(), life::runs);
        self.note_got(taken.unwrap_or(Got::Not))
    }

    fn note_got(&self, got: Got) -> PyResult<bool> {
        if got != Got::Not {
            self.note_owned();
        }
        match got {
            Got::FromTheDead(_) if self.kind == Kind::InternalMutex => Ok(true),
            Got::FromTheDead(who) => Err(OwnerDiedError::new_err(format!(
                "process {} died while it held the lock; it is yours now",
                who.pid
            ))),
            got => Ok(got == Got::Free),
        }
    }

    #[inline]
    pub fn release(&self) -> Result<(), Refused> {
        if self.kind != Kind::Semaphore {
            return self.release_mutex();
        }
        semaphore::release(&self.line[WORD], self.max).map_err(|_| Refused::TooOften)?;
        self.add(-1);
        self.released();
        Ok(())
    }

    fn release_mutex(&self) -> Result<(), Refused> {
        let may_release = match self.kind {
            Kind::RobustMutex => owned::is_held_by(&self.line[WORD], life::me()),
            _ => self.is_mine(),
        };
        if !may_release {
            return Err(match self.kind {
                Kind::RobustMutex if self.value() == 1 => Refused::TooOften,
                Kind::RobustMutex => Refused::OtherProcess,
                _ => Refused::NotOwner,
            });
        }
        let depth = self.line[DEPTH].load(Ordering::Relaxed);
        if depth > 1 {
            self.line[DEPTH].store(depth - 1, Ordering::Relaxed);
        } else {
            self.give_up();
        }
        Ok(())
    }

    #[inline]
    fn give_up(&self) {
        self.line[THREAD].store(0, Ordering::Relaxed);
        self.line[DEPTH].store(0, Ordering::Relaxed);
        owned::release(&self.line[WORD]);
        self.released();
    }

    #[inline]
    fn released(&self) {
        if self.has_deferred.load(Ordering::Relaxed) {
            self.wake_deferred();
        }
    }

    /// Releases it as often as this thread holds it; how often that was.
    pub fn release_all(&self) -> PyResult<i64> {
        let count = self.count();
        if self.kind != Kind::Semaphore {
            self.give_up();
        } else {
            for _ in 0..count {
                self.release()?;
            }
        }
        Ok(count)
    }

    /// The reverse of [`release_all`](Self::release_all): does not return without the lock when
    /// a signal handler raises (`pending`: or has raised before), but when a second one does.
    pub fn acquire_all(
        &self,
        py: Python<'_>,
        count: i64,
        mut pending: Option<PyErr>,
    ) -> PyResult<()> {
        let mut left = if self.kind != Kind::Semaphore {
            1
        } else {
            count
        };
        while left > 0 {
            let got = if self.try_acquire() {
                Ok(true)
            } else {
                self.wait(py, None)
            };
            match got {
                Ok(_) => left -= 1,
                Err(error) if error.is_instance_of::<OwnerDiedError>(py) => {
                    left -= 1;
                    pending = Some(error);
                }
                Err(error) if pending.is_some() => return Err(error),
                Err(error) => pending = Some(error),
            }
        }
        if self.kind != Kind::Semaphore {
            self.line[DEPTH].store(count as u64, Ordering::Relaxed);
        }
        pending.map_or(Ok(()), Err)
    }
}

/// Why a release is an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    TooOften,
    NotOwner,
    OtherProcess,
}

impl From<Refused> for PyErr {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::TooOften => PyValueError::new_err("semaphore or lock released too many times"),
            Refused::OtherProcess => PyValueError::new_err("another process holds the lock"),
            Refused::NotOwner => {
                PyAssertionError::new_err("attempt to release recursive lock not owned by thread")
            }
        }
    }
}
