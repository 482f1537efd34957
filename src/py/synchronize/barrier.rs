//! Barriers.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use pyo3::PyTraverseError;
use pyo3::exceptions::PyValueError;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use super::wait_for;
use crate::ipc::arena::Block;
use crate::ipc::barrier::{self, Arrival, Broken, Part};
use crate::ipc::spin::{self, Spinner};
use crate::py::block::{Deadline, block_on};
use crate::py::error::os_error;
use crate::py::heap;
use crate::py::late::{self, Late};
use crate::sys::life::{self, Identity};
use crate::sys::memory::LineRef;
use crate::sys::{cpu, fork};

pyo3::import_exception!(threading, BrokenBarrierError);

/// The word of its line where who last arrived was.
const WHERE: usize = barrier::WORDS;

#[derive(Debug)]
struct Parts {
    block: Arc<Block>,
    line: LineRef,
    parties: u32,
    action: Option<Py<PyAny>>,
    timeout: Option<f64>,
    spinner: Spinner,
    /// where another party was that arrived before one of this process, see `cpu`
    other: AtomicU64,
}

impl Parts {
    fn words(&self) -> barrier::Barrier<'_, AtomicU64> {
        barrier::Barrier(&self.line[..barrier::WORDS])
    }

    fn arrive(&self, py: Python<'_>, deadline: Deadline) -> PyResult<Arrival> {
        let words = self.words();
        loop {
            match words.arrive(self.parties, self.action.is_some(), fork::pid()) {
                Ok(Some(arrival)) => return Ok(arrival),
                Err(Broken) => return Err(broken()),
                Ok(None) => {
                    let room = block_on(py, deadline, |left| words.wait_for_room(left, runs))?;
                    if !room {
                        words.abort();
                    }
                }
            }
        }
    }

    fn wait(&self, py: Python<'_>, deadline: Deadline) -> PyResult<u32> {
        let words = self.words();
        cpu::note_other(&self.line[WHERE], &self.other);
        let arrival = self.arrive(py, deadline)?;
        let passed = match arrival.part {
            Part::Go => Ok(()),
            Part::Act => {
                let done = self
                    .action
                    .as_ref()
                    .map_or(Ok(()), |act| act.call0(py).map(drop));
                let passed = words.finish(arrival, self.parties, done.is_err());
                done?;
                passed
            }
            Part::Wait => {
                let look = || words.look(arrival);
                let sleep = |left| words.wait(arrival, left, runs);
                let elsewhere = || cpu::is_elsewhere(&self.other);
                let spinner = (&self.spinner, spin::ANSWER);
                let waited = wait_for(py, deadline, spinner, elsewhere, look, sleep);
                if waited.is_err() {
                    words.withdraw(arrival);
                }
                waited?
            }
        };
        passed.map(|()| arrival.index).map_err(|_| broken())
    }
}

fn runs(pid: u32) -> bool {
    life::runs(Identity { pid, stamp: 0 })
}

fn broken() -> PyErr {
    BrokenBarrierError::new_err(())
}

/// A point that a number of parties reach together. *Process-shared* words; a forked child
/// inherits them.
#[pyclass(frozen, subclass, dict, weakref, module = "billiard._core")]
pub struct Barrier {
    parts: Late<Parts>,
}

impl Barrier {
    fn parts(&self) -> PyResult<&Parts> {
        self.parts.get().ok_or_else(|| late::missing("barrier"))
    }

    fn set_parts(
        &self,
        block: Arc<Block>,
        parties: i64,
        action: Option<Py<PyAny>>,
        timeout: Option<f64>,
    ) -> PyResult<()> {
        let parties = u32::try_from(parties)
            .ok()
            .filter(|parties| (1..=barrier::MOST).contains(parties))
            .ok_or_else(|| {
                PyValueError::new_err(format!("{parties} parties: not in 1..{}", barrier::MOST))
            })?;
        let parts = Parts {
            line: block.line(),
            block,
            parties,
            action,
            timeout,
            spinner: Spinner::default(),
            other: AtomicU64::new(0),
        };
        late::once(self.parts.set(parts), "barrier")
    }
}

#[pymethods]
impl Barrier {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self { parts: Late::new() }
    }

    #[pyo3(signature = (parties, action=None, timeout=None))]
    fn __init__(
        &self,
        parties: i64,
        action: Option<Py<PyAny>>,
        timeout: Option<f64>,
    ) -> PyResult<()> {
        self.set_parts(
            Arc::new(Block::new(64).map_err(os_error)?),
            parties,
            action,
            timeout,
        )
    }

    /// Makes an object without parts the barrier in this block: what unpickling does.
    fn _adopt(
        &self,
        block: &heap::Block,
        parties: i64,
        action: Option<Py<PyAny>>,
        timeout: Option<f64>,
    ) -> PyResult<()> {
        self.set_parts(Arc::clone(&block.block), parties, action, timeout)
    }

    /// The block of shared memory that the barrier is in.
    #[getter]
    fn _block(&self) -> PyResult<heap::Block> {
        Ok(heap::Block {
            block: Arc::clone(&self.parts()?.block),
        })
    }

    #[getter]
    fn _action(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        Ok(self
            .parts()?
            .action
            .as_ref()
            .map(|action| action.clone_ref(py)))
    }

    #[getter]
    fn _timeout(&self) -> PyResult<Option<f64>> {
        Ok(self.parts()?.timeout)
    }

    /// 0: parties arrive; 1: the action runs; -2: broken.
    #[getter]
    fn _state(&self) -> PyResult<i32> {
        Ok(self.parts()?.words().phase())
    }

    /// Waits for the other parties; a different number from 0 on for each of them. Breaks the
    /// barrier after `timeout` seconds.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<u32> {
        let parts = self.parts()?;
        let deadline = Deadline::after(timeout.or(parts.timeout))?;
        parts.wait(py, deadline)
    }

    /// Makes it as new; those who wait get BrokenBarrierError.
    fn reset(&self) -> PyResult<()> {
        self.parts()?.words().reset();
        Ok(())
    }

    /// Breaks it: those who wait or come get BrokenBarrierError.
    fn abort(&self) -> PyResult<()> {
        self.parts()?.words().abort();
        Ok(())
    }

    /// How many parties it takes.
    #[getter]
    fn parties(&self) -> PyResult<u32> {
        Ok(self.parts()?.parties)
    }

    /// How many parties wait.
    #[getter]
    fn n_waiting(&self) -> PyResult<u32> {
        let parts = self.parts()?;
        Ok(parts.words().waiting(parts.parties))
    }

    /// Whether it is broken.
    #[getter]
    fn broken(&self) -> PyResult<bool> {
        Ok(self.parts()?.words().is_broken())
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        match self.parts.get().and_then(|parts| parts.action.as_ref()) {
            Some(action) => visit.call(action),
            None => Ok(()),
        }
    }
}
