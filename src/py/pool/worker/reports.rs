//! What is reported to the pool.

use std::sync::atomic::Ordering;
use std::time::Duration;

use pyo3::exceptions::PySystemExit;
use pyo3::prelude::*;

use super::PoolLane;
use crate::pool::message::record;
use crate::pool::station::Station;
use crate::py::block::{Deadline, block_on};
use crate::py::payload::Outgoing;
use crate::py::pool::calls;

impl PoolLane {
    /// Sends a record, waiting for room if there is none.
    pub(super) fn report(&self, py: Python<'_>, tag: u32, parts: &[&[u8]]) -> PyResult<()> {
        let station = self.station();
        if station.try_report(tag, parts) {
            return Ok(());
        }
        while !block_on(py, Deadline::Never, |_| station.report_or_sleep(tag, parts))? {}
        Ok(())
    }

    /// Reports an outcome, unless it has been decided otherwise: then this process is about to be
    /// ended, and waits for it.
    pub(super) fn finish(
        &self,
        wire: &Bound<'_, PyAny>,
        task: u64,
        success: bool,
        value: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let py = wire.py();
        let station = self.station();
        let number = task.to_le_bytes();
        let small = if success {
            record::VALUE
        } else {
            record::FAILURE
        };
        let sent = calls::encode_outcome(wire, value, SMALL, |encoded| match encoded {
            Ok(_) if !self.conclude(task) => Sent::Condemned,
            Ok(bytes) if station.try_report(small, &[&number, bytes]) => Sent::Whole,
            Ok(bytes) => Sent::Waits(bytes.to_vec()),
            Err(packed) => Sent::Large(packed),
        })?;
        match sent {
            Sent::Whole => Ok(()),
            Sent::Condemned => self.wait_for_the_end(py),
            Sent::Waits(bytes) => self.report(py, small, &[&number, &bytes]),
            Sent::Large(packed) => {
                let reference = self.write_extent(py, &packed)?;
                if !self.conclude(task) {
                    return self.wait_for_the_end(py);
                }
                let large = if success {
                    record::BIG_VALUE
                } else {
                    record::BIG_FAILURE
                };
                let reported = self.report(py, large, &[&number, &reference.to_le_bytes()]);
                if reported.is_err() {
                    station.results.discard(reference);
                }
                reported
            }
        }
    }

    /// Ends the task with the outcome that is about to be reported, and counts it; false if it has
    /// been decided otherwise.
    ///
    /// A signal handler may raise while an outcome waits for room. The exception is reported in its
    /// place: the task ends once, and is counted once.
    fn conclude(&self, task: u64) -> bool {
        let station = self.station();
        if station.finish(task) {
            self.lane.done().fetch_add(1, Ordering::Relaxed);
            return true;
        }
        station.is_finished(task)
    }

    fn write_extent(&self, py: Python<'_>, packed: &Outgoing) -> PyResult<u32> {
        let station = self.station();
        if packed.is_long() {
            py.detach(|| station.results.wait_for_return(packed.size()));
        }
        loop {
            if let Some(reference) = packed.send(py, &station.results)? {
                return Ok(reference);
            }
            // All are on their way or in use; the pool copies before that lasts.
            block_on(py, Deadline::Never, |_| station.wait_for_reader())?;
        }
    }

    fn wait_for_the_end(&self, py: Python<'_>) -> PyResult<()> {
        for _ in 0..50 {
            py.detach(|| std::thread::sleep(Duration::from_millis(20)));
            py.check_signals()?;
        }
        Err(PySystemExit::new_err((1,)))
    }
}

enum Sent {
    Whole,
    Condemned,
    Waits(Vec<u8>),
    Large(Outgoing),
}

/// Outcomes of up to so many bytes go into the ring.
const SMALL: usize = 32 << 10;
const _: () = assert!(Station::fits(SMALL + 8));
