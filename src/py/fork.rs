//! Forking through the interpreter's hooks: under `billiard/popen_fork.py` and the pool's workers.

use nix::errno::Errno;
use pyo3::IntoPyObjectExt;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyList;

use super::error::os_error;
use super::process::Child;
use crate::sys::process::{self, ForkPlan};

/// Calls `fork` within the interpreter's hooks; the child's number, or 0 in the child.
///
/// `born` is called in the child before the hooks: nothing of the interpreter works there yet.
#[allow(unsafe_code)]
pub(super) fn fork_with_hooks(
    _py: Python<'_>,
    fork: impl FnOnce() -> nix::Result<libc::pid_t>,
    born: impl FnOnce(),
) -> nix::Result<libc::pid_t> {
    // SAFETY: the GIL is held, and each of the three hooks is called where the C API wants it:
    // before the fork, then one of the others on each side, whether it failed or not.
    unsafe {
        ffi::PyOS_BeforeFork();
        let pid = fork();
        match pid {
            Ok(0) => {
                born();
                ffi::PyOS_AfterFork_Child();
            }
            _ => ffi::PyOS_AfterFork_Parent(),
        }
        pid
    }
}

/// Locks of Python's that are held.
struct HeldLocks<'a, 'py>(&'a [Bound<'py, PyAny>]);

impl<'a, 'py> HeldLocks<'a, 'py> {
    /// Takes all of them if they are free; else the place of one that is not. No Python code runs
    /// and the GIL is kept, so that nobody comes in between.
    fn take(locks: &'a [Bound<'py, PyAny>]) -> Result<Self, usize> {
        for (place, lock) in locks.iter().enumerate() {
            let taken = lock.call_method1("acquire", (false,));
            if !taken.is_ok_and(|taken| taken.is_truthy().unwrap_or(false)) {
                drop(Self(&locks[..place]));
                return Err(place);
            }
        }
        Ok(Self(locks))
    }
}

impl Drop for HeldLocks<'_, '_> {
    fn drop(&mut self) {
        for lock in self.0.iter().rev() {
            // It was taken by this thread.
            let _ = lock.call_method0("release");
        }
    }
}

/// Who returns from [`fork_each`].
pub(super) enum Forked {
    /// What became of each fork.
    Parent(Vec<PyResult<Child>>),
    /// The number of the fork that made this process.
    Child(usize),
}

/// Where [`fork_each`] is: before a fork, after it in the parent, or just born.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Moment {
    Before,
    Parent,
    Child,
}

/// Forks `many` times, and calls `at` around each fork.
///
/// Between two forks next to nothing happens: whatever the parent touches after a fork it has to
/// copy first, and after the next fork again.
///
/// `standstill` knows what other threads must not be in the middle of: its `locks()` are held from
/// after the hooks before a fork until right after it. While one of them is not free there is no
/// fork: `standstill` is told to `wait_for` that lock, and it begins anew.
pub(super) fn fork_each(
    py: Python<'_>,
    many: usize,
    mut standstill: Option<&Bound<'_, PyAny>>,
    at: impl Fn(Moment, usize),
) -> PyResult<Forked> {
    let mut children = Vec::with_capacity(many);
    for number in 0..many {
        let plan = match ForkPlan::new() {
            Ok(plan) => plan,
            Err(errno) => {
                children.push(Err(os_error(errno)));
                continue;
            }
        };
        let forked = loop {
            let locks = told(&mut standstill, |it| it.call_method0("locks")?.extract());
            let locks: Vec<Bound<'_, PyAny>> = locks.unwrap_or_default();
            let mut busy = None;
            at(Moment::Before, number);
            let fork = || fork_holding(&locks, &mut busy);
            let forked = fork_with_hooks(py, fork, || at(Moment::Child, number));
            if forked != Ok(0) {
                at(Moment::Parent, number);
            }
            let Some(place) = busy else { break forked };
            told(&mut standstill, |it| {
                it.call_method1("wait_for", (&locks[place],))
            });
        };
        if forked == Ok(0) {
            plan.in_child();
            return Ok(Forked::Child(number));
        }
        children.push(
            forked
                .and_then(|pid| plan.in_parent(pid))
                .map(|started| Child::new(started, None))
                .map_err(os_error),
        );
    }
    Ok(Forked::Parent(children))
}

/// Forks while the locks are held; if one of them is not free, `busy` becomes its place instead.
fn fork_holding(locks: &[Bound<'_, PyAny>], busy: &mut Option<usize>) -> nix::Result<libc::pid_t> {
    let held = HeldLocks::take(locks).map_err(|place| {
        *busy = Some(place);
        Errno::EBUSY
    })?;
    let pid = process::fork();
    if pid == Ok(0) {
        // They belong to the parent.
        std::mem::forget(held);
    }
    pid
}

/// What `f` gets from `standstill`, if there is one; it is not asked again after an error: some have
/// been forked already, and somebody waits for the others.
fn told<'py, T>(
    standstill: &mut Option<&Bound<'py, PyAny>>,
    f: impl FnOnce(&Bound<'py, PyAny>) -> PyResult<T>,
) -> Option<T> {
    let it = (*standstill)?;
    f(it)
        .inspect_err(|error| {
            error.clone_ref(it.py()).write_unraisable(it.py(), Some(it));
            *standstill = None;
        })
        .ok()
}

impl<'py> IntoPyObject<'py> for Forked {
    type Target = PyAny;
    type Output = Bound<'py, PyAny>;
    type Error = PyErr;

    fn into_pyobject(self, py: Python<'py>) -> PyResult<Self::Output> {
        let children = match self {
            Self::Child(number) => return number.into_bound_py_any(py),
            Self::Parent(children) => children,
        };
        let list = PyList::empty(py);
        for child in children {
            match child {
                Ok(child) => list.append(child)?,
                Err(error) => list.append(error.into_value(py))?,
            }
        }
        Ok(list.into_any())
    }
}

/// Forks `many` times: returns a list with a `Child` or an OSError for each, and in each child its
/// place in that list.
///
/// As `os.fork`, but it does not warn of threads, and audits nothing (its caller does).
#[pyfunction]
fn fork_all(py: Python<'_>, many: usize) -> PyResult<Forked> {
    fork_each(py, many, None, |_, _| ())
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(fork_all, module)?)
}
