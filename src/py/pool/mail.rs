//! Messages of the engine to the thread that serves the book.

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::calls;
use crate::pool::state::Mail;

/// Kinds of messages, as in `billiard/_pool/constants.py`.
const ACK: i32 = 0;
const READY: i32 = 1;
const OVER: i32 = -1;
const SOFT: i32 = -2;
const HARD: i32 = -3;
const DRAINED: i32 = -4;
const IDLE: i32 = -5;

/// A message for the result handler.
pub fn message(wire: &Bound<'_, PyAny>, mail: Mail) -> PyResult<Py<PyAny>> {
    let py = wire.py();
    let number = |i: i64| (i >= 0).then_some(i);
    let message = match mail {
        Mail::Ack(job, i, at, pid) => (ACK, (job, number(i), at, pid, py.None()))
            .into_pyobject(py)?
            .into_any(),
        Mail::Ready(job, i, outcome) => {
            let outcome = calls::decode_outcome(wire, outcome).or_else(|given_up| {
                let (error, _) = *given_up;
                // No signal's handler runs in this thread: it is the outcome's own.
                calls::failure(wire, error).map(|info| (false, info))
            })?;
            (READY, (job, number(i), outcome, py.None()))
                .into_pyobject(py)?
                .into_any()
        }
        Mail::Other(pid, bytes) => {
            wire.call_method1(intern!(py, "message_of"), (pid, PyBytes::new(py, &bytes)))?
        }
        Mail::Soft(job, i) => (SOFT, (job, number(i))).into_pyobject(py)?.into_any(),
        Mail::Hard(job, i, limit) => (HARD, (job, number(i), limit))
            .into_pyobject(py)?
            .into_any(),
        Mail::Over(pid, lost) => {
            let lost = lost.map(|lost| {
                let (job, i) = lost.book.unzip();
                (lost.task, job, i.and_then(number))
            });
            (OVER, (pid, lost)).into_pyobject(py)?.into_any()
        }
        Mail::Drained => (DRAINED, ()).into_pyobject(py)?.into_any(),
        Mail::Idle => (IDLE, ()).into_pyobject(py)?.into_any(),
        Mail::End => py.None().into_bound(py),
    };
    Ok(message.unbind())
}
