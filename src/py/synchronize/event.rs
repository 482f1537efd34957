//! Events.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use super::wait_for;
use crate::ipc::arena::Block;
use crate::ipc::event;
use crate::ipc::spin::{self, Spinner};
use crate::py::block::Deadline;
use crate::py::error::os_error;
use crate::py::heap;
use crate::py::late;
use crate::sys::cpu;
use crate::sys::memory::LineRef;

const WORD: usize = 0;
/// where who last set it was
const WHERE: usize = 1;

/// A flag that processes wait for. *Process-shared* word; a forked child inherits it.
#[pyclass(frozen, subclass, dict, weakref, module = "billiard._core")]
pub struct Event {
    parts: OnceLock<Parts>,
}

#[derive(Debug)]
struct Parts {
    block: Arc<Block>,
    line: LineRef,
    spinner: Spinner,
}

impl Event {
    #[inline]
    fn parts(&self) -> PyResult<&Parts> {
        self.parts.get().ok_or_else(|| late::missing("event"))
    }

    #[inline]
    fn word(&self) -> PyResult<&AtomicU64> {
        Ok(&self.parts()?.line[WORD])
    }

    fn set_parts(&self, block: Arc<Block>) -> PyResult<()> {
        let parts = Parts {
            line: block.line(),
            block,
            spinner: Spinner::default(),
        };
        late::once(self.parts.set(parts), "event")
    }
}

#[pymethods]
impl Event {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self {
            parts: OnceLock::new(),
        }
    }

    fn __init__(&self) -> PyResult<()> {
        self.set_parts(Arc::new(Block::new(64).map_err(os_error)?))
    }

    /// Makes an object without parts the event in this block: what unpickling does.
    fn _adopt(&self, block: &heap::Block) -> PyResult<()> {
        self.set_parts(Arc::clone(&block.block))
    }

    /// The block of shared memory that the event is in.
    #[getter]
    fn _block(&self) -> PyResult<heap::Block> {
        Ok(heap::Block {
            block: Arc::clone(&self.parts()?.block),
        })
    }

    /// Whether it is set.
    fn is_set(&self) -> PyResult<bool> {
        Ok(event::is_set(self.word()?))
    }

    /// Sets it and lets all waiters go.
    fn set(&self) -> PyResult<()> {
        cpu::note(&self.parts()?.line[WHERE]);
        event::set(self.word()?);
        Ok(())
    }

    /// Unsets it.
    fn clear(&self) -> PyResult<()> {
        event::clear(self.word()?);
        Ok(())
    }

    /// Waits until it is set, or was for a moment. False after `timeout` seconds.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let word = self.word()?;
        let since = event::look(word);
        if event::happened(word, since) {
            return Ok(true);
        }
        let deadline = Deadline::after(timeout)?;
        let look = || event::happened(word, since).then_some(true);
        let sleep = |left| event::wait(word, since, left);
        let parts = self.parts()?;
        let elsewhere = || cpu::is_elsewhere(&parts.line[WHERE]);
        let spinner = (&parts.spinner, spin::ANSWER);
        wait_for(py, deadline, spinner, elsewhere, look, sleep)
    }
}
