//! The thread that moves what a process has put into a queue and the ring had no room for.

use std::sync::{Arc, Weak};

use pyo3::prelude::*;

use crate::ipc::channel::Channel;
use crate::ipc::outbox::Outbox;
use crate::py::block::{Deadline, block_on};

/// What remains to be known of the thread when the queue has been let go of: it has the look of a
/// thread. *Process-local*; in a forked child there is no such thread, and nothing to wait for.
#[pyclass(frozen, name = "QueueMover", module = "billiard._core")]
pub struct Mover {
    /// the thread keeps it for as long as it needs it
    channel: Weak<Channel>,
    /// none once it is dropped
    outbox: Option<Arc<Outbox>>,
}

impl Mover {
    pub fn new(channel: &Arc<Channel>, outbox: Arc<Outbox>) -> Self {
        Self {
            channel: Arc::downgrade(channel),
            outbox: Some(outbox),
        }
    }

    fn own_outbox(&self) -> Option<&Outbox> {
        self.outbox.as_deref().filter(|outbox| outbox.is_ours())
    }
}

impl Drop for Mover {
    fn drop(&mut self) {
        if self.own_outbox().is_none() {
            // The parent's thread may have been changing it.
            std::mem::forget(self.outbox.take());
        }
    }
}

#[pymethods]
impl Mover {
    #[getter]
    fn name(&self) -> &str {
        "QueueFeederThread"
    }

    #[getter]
    fn daemon(&self) -> bool {
        true
    }

    /// Whether there is something to move.
    fn is_alive(&self) -> bool {
        self.own_outbox().is_some_and(Outbox::is_busy)
    }

    /// Waits until there is nothing left to move, for at most `timeout` seconds.
    #[pyo3(signature = (timeout=None))]
    fn join(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<()> {
        let Some(outbox) = self.own_outbox() else {
            return Ok(());
        };
        let deadline = Deadline::after(timeout)?;
        while !block_on(py, deadline, |left| outbox.wait_until_empty(left))? && !deadline.passed() {
        }
        Ok(())
    }

    /// The same at the end of the process, which takes no more: ends early if no process does.
    fn finish(&self, py: Python<'_>) -> PyResult<()> {
        if self.own_outbox().is_some()
            && let Some(channel) = self.channel.upgrade()
        {
            channel.close_reader();
        }
        self.join(py, None)
    }
}
