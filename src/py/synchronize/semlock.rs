//! Semaphores and recursive mutexes.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use nix::errno::Errno;
use pyo3::exceptions::{PyAssertionError, PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use super::wait_for;
use crate::ipc::arena::Block;
use crate::ipc::condition::Condition;
use crate::ipc::owned::{self, Got};
use crate::ipc::semaphore;
use crate::ipc::spin::Spinner;
use crate::py::block::Deadline;
use crate::py::error::os_error;
use crate::py::heap;
use crate::sys::fork::ForkLock;
use crate::sys::memory::LineRef;
use crate::sys::{clock, fork, life};

pyo3::import_exception!(billiard.exceptions, OwnerDiedError);

/// What a lock is. The numbers are known to Python; those above 1 are ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
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
    fn new(number: i32) -> PyResult<Self> {
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
    block: Arc<Block>,
    line: LineRef,
    kind: Kind,
    max: u32,
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
    fn new(block: Arc<Block>, kind: Kind, max: u32) -> Self {
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

    fn value(&self) -> u32 {
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
        if self.kind == Kind::Semaphore {
            let look = || semaphore::try_acquire(word).then_some(true);
            let sleep = |left| semaphore::wait(word, left);
            let got = wait_for(py, deadline, &self.spinner, look, sleep)?;
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
        let got = wait_for(py, deadline, &self.spinner, look, sleep)?;
        self.note_got(got)
    }

    /// What is left to do when it could not be had at once and the caller will not wait: who only
    /// ever tries has to find a dead owner too. Looked for now and then, because it takes a while.
    #[cold]
    fn try_again(&self) -> PyResult<bool> {
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

/// A semaphore or recursive mutex in shared memory. *Process-shared* words; the object itself is
/// *process-local*. A forked child inherits both: it does not own what its parent had acquired.
#[pyclass(frozen, subclass, dict, weakref, module = "billiard._core")]
pub struct SemLock {
    parts: OnceLock<Parts>,
}

impl SemLock {
    #[inline]
    pub fn parts(&self) -> PyResult<&Parts> {
        self.parts.get().ok_or_else(not_initialised)
    }

    /// Acquires it if that needs no waiting.
    #[inline]
    pub fn try_acquire(&self) -> bool {
        self.parts.get().is_some_and(Parts::try_acquire)
    }

    /// Whether nobody but the caller of `release` can make it free: no owner that could die.
    #[inline]
    pub fn is_semaphore(&self) -> bool {
        self.parts
            .get()
            .is_some_and(|parts| parts.kind == Kind::Semaphore)
    }

    /// Releases it if that is no error.
    #[inline]
    pub fn try_release(&self) -> bool {
        self.parts
            .get()
            .is_some_and(|parts| parts.release().is_ok())
    }

    /// What `with` does.
    #[inline]
    pub fn enter(&self, py: Python<'_>) -> PyResult<bool> {
        let parts = self.parts()?;
        if parts.try_acquire() {
            return Ok(true);
        }
        parts.wait(py, None)
    }

    fn set(&self, parts: Parts) -> PyResult<()> {
        let again = self.parts.set(parts).is_err();
        if again {
            Err(PyRuntimeError::new_err("lock is already initialised"))
        } else {
            Ok(())
        }
    }
}

#[cold]
fn not_initialised() -> PyErr {
    PyRuntimeError::new_err("__init__ of the lock was not called")
}

/// A lock of this kind that can have this value, or what is wrong.
fn check(kind: i32, value: i64, max: i64) -> PyResult<(Kind, u32)> {
    let kind = Kind::new(kind)?;
    for number in [value, max] {
        if !(0..=i64::from(semaphore::VALUE_MAX)).contains(&number) {
            let text = format!(
                "semaphore value {number} is not in 0..{}",
                semaphore::VALUE_MAX
            );
            return Err(PyOSError::new_err((Errno::EINVAL as i32, text)));
        }
    }
    if kind != Kind::Semaphore && (value, max) != (1, 1) {
        return Err(PyValueError::new_err("a mutex has value 1 and maximum 1"));
    }
    Ok((kind, max as u32))
}

#[pymethods]
impl SemLock {
    #[classattr]
    const SEM_VALUE_MAX: u32 = semaphore::VALUE_MAX;

    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self {
            parts: OnceLock::new(),
        }
    }

    #[pyo3(signature = (kind, value, maxvalue, name=None, unlink=true))]
    fn __init__(
        &self,
        kind: i32,
        value: i64,
        maxvalue: i64,
        name: Option<&str>,
        unlink: bool,
    ) -> PyResult<()> {
        let _ = (name, unlink); // it has no name
        let (kind, max) = check(kind, value, maxvalue)?;
        let block = Arc::new(Block::new(64).map_err(os_error)?);
        if kind == Kind::Semaphore {
            block.line()[WORD].store(value as u64, Ordering::Release);
        }
        self.set(Parts::new(block, kind, max))
    }

    /// Makes an object without parts the lock in this block: what unpickling does.
    fn _adopt(&self, block: &heap::Block, kind: i32, maxvalue: i64) -> PyResult<()> {
        let (kind, max) = check(kind, 1, maxvalue)?;
        self.set(Parts::new(Arc::clone(&block.block), kind, max))
    }

    #[staticmethod]
    #[pyo3(signature = (handle, kind, maxvalue, name=None))]
    fn _rebuild(
        handle: &heap::Block,
        kind: i32,
        maxvalue: i64,
        name: Option<&str>,
    ) -> PyResult<Self> {
        let _ = name;
        let lock = Self {
            parts: OnceLock::new(),
        };
        lock._adopt(handle, kind, maxvalue)?;
        Ok(lock)
    }

    /// The block of shared memory that the lock is in.
    #[getter]
    fn _block(&self) -> PyResult<heap::Block> {
        Ok(heap::Block {
            block: Arc::clone(&self.parts()?.block),
        })
    }

    #[pyo3(signature = (block=None, timeout=None), text_signature = "($self, block=True, timeout=None)")]
    fn acquire(
        &self,
        py: Python<'_>,
        block: Option<&Bound<'_, PyAny>>,
        timeout: Option<f64>,
    ) -> PyResult<bool> {
        let parts = self.parts()?;
        if parts.try_acquire() {
            return Ok(true);
        }
        if let Some(block) = block
            && !block.is_truthy()?
        {
            return parts.try_again();
        }
        parts.wait(py, timeout)
    }

    fn release(&self) -> PyResult<()> {
        Ok(self.parts()?.release()?)
    }

    fn __enter__(&self, py: Python<'_>) -> PyResult<bool> {
        self.enter(py)
    }

    #[pyo3(signature = (exc_type=None, exc_value=None, traceback=None))]
    fn __exit__(
        &self,
        exc_type: Option<&Bound<'_, PyAny>>,
        exc_value: Option<&Bound<'_, PyAny>>,
        traceback: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let _ = (exc_type, exc_value, traceback);
        Ok(self.parts()?.release()?)
    }

    fn _count(&self) -> PyResult<i64> {
        Ok(self.parts()?.count())
    }

    fn _is_mine(&self) -> PyResult<bool> {
        Ok(self.parts()?.is_mine())
    }

    fn _get_value(&self) -> PyResult<u32> {
        Ok(self.parts()?.value())
    }

    fn _is_zero(&self) -> PyResult<bool> {
        Ok(self.parts()?.value() == 0)
    }

    /// Forgets what this process had acquired. A forked child does so by itself.
    fn _after_fork(&self) -> PyResult<()> {
        self.parts()?.count.store(0, Ordering::Relaxed);
        Ok(())
    }

    /// Where this process sees the lock.
    #[getter]
    fn handle(&self) -> PyResult<usize> {
        Ok(self.parts()?.block.address().as_ptr() as usize)
    }

    #[getter]
    fn kind(&self) -> PyResult<i32> {
        Ok(self.parts()?.kind as i32)
    }

    #[getter]
    fn maxvalue(&self) -> PyResult<u32> {
        Ok(self.parts()?.max)
    }

    /// None: it has no name in the system.
    #[getter]
    fn name(&self) -> Option<&str> {
        None
    }

    /// Unlinks a named semaphore of the system. Ours have no names.
    #[staticmethod]
    fn sem_unlink(name: &str) -> PyResult<()> {
        sem_unlink(name)
    }
}

/// Unlinks a named semaphore of the system, such as another library's.
#[pyfunction]
pub fn sem_unlink(name: &str) -> PyResult<()> {
    crate::sys::posix_semaphore::unlink(name).map_err(os_error)
}
