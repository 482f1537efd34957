//! Tasks on their way in.

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use super::PoolLane;
use crate::pool::message::record;
use crate::pool::shared::{IN_EXTENT, SLOT, TaskHead, WANTS_ACK};
use crate::pool::station::Look;
use crate::py::block::{Deadline, block_on};
use crate::py::error::os_error;
use crate::py::payload::Source;
use crate::py::pool::calls::{self, Work};

/// Extents of arguments that a worker may hold on to (views of arrays that outlive their task).
/// What comes then is copied: the pool has so many for all workers.
const VIEWS: usize = 16;

impl PoolLane {
    /// Waits for a task; `None`: there will be no more.
    pub(super) fn claim(&self, py: Python<'_>) -> PyResult<Option<u64>> {
        let station = self.station();
        let mut look = station.look();
        loop {
            match look {
                Look::Claimed(position) => return Ok(Some(position)),
                Look::Leave => {
                    station.pass_on();
                    return Ok(None);
                }
                Look::Nothing => {}
            }
            look = py.detach(|| station.spin());
            if look == Look::Nothing {
                look = block_on(py, Deadline::Never, |_| station.sleep())?;
                if look == Look::Nothing {
                    look = station.look();
                }
            }
        }
    }

    /// Takes the claimed task.
    pub(super) fn accept<'py>(
        &self,
        wire: &Bound<'py, PyAny>,
        position: u64,
    ) -> (TaskHead, PyResult<Work<'py>>) {
        let py = wire.py();
        let station = self.station();
        let mut slot = [0; SLOT];
        let head = station.accept(position, &mut slot);
        let acknowledged = if head.flags & WANTS_ACK != 0 {
            self.report(py, record::ACK, &[&head.task.to_le_bytes()])
        } else {
            Ok(())
        };
        let bytes = &slot[TaskHead::SIZE..TaskHead::SIZE + head.payload()];
        let work = if head.flags & IN_EXTENT == 0 {
            calls::decode_call(wire, &mut self.known.lock(), &head, bytes)
        } else {
            self.take(bytes)
                .and_then(|source| calls::decode_large_call(py, source))
        };
        // What a signal handler has raised while that waited for room is the task's.
        (head, acknowledged.and(work))
    }

    fn take(&self, bytes: &[u8]) -> PyResult<Source> {
        let strange = || PyRuntimeError::new_err("the pool has sent something strange");
        let reference = bytes.try_into().map_err(|_| strange())?;
        let tasks = &self.station().tasks;
        let taken = tasks
            .take(u32::from_le_bytes(reference))
            .map_err(|_| strange())?;
        if tasks.held() > VIEWS {
            return taken.copy_out().map(Source::Heap).map_err(os_error);
        }
        Ok(Source::Extent(taken))
    }
}
