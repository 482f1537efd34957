//! Messages of the engine to the threads of the layer above.

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::calls;
use crate::pool::state::{Event, Mail};

/// Kinds of messages, as in `billiard/_pool/constants.py`.
const ACK: i32 = 0;
const READY: i32 = 1;
const OVER: i32 = -1;
const SOFT: i32 = -2;
const HARD: i32 = -3;
const DRAINED: i32 = -4;
const IDLE: i32 = -5;
const CHANGE: i32 = -7;

/// For the result handler.
pub fn of_mail(wire: &Bound<'_, PyAny>, mail: Mail) -> PyResult<Py<PyAny>> {
    let py = wire.py();
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
        Mail::Other(pid, bytes) => unpickled(wire, pid, &bytes)?,
        Mail::Soft(job, i) => (SOFT, (job, number(i))).into_pyobject(py)?.into_any(),
        Mail::Hard(job, i, limit) => (HARD, (job, number(i), limit))
            .into_pyobject(py)?
            .into_any(),
        Mail::Idle => (IDLE, ()).into_pyobject(py)?.into_any(),
        Mail::Posted(object) => {
            let object = object.downcast_ref::<Py<PyAny>>();
            object.map_or_else(
                || py.None().into_bound(py),
                |object| object.bind(py).clone(),
            )
        }
    };
    Ok(message.unbind())
}

/// For the supervisor.
pub fn of_event(wire: &Bound<'_, PyAny>, event: Event) -> PyResult<Py<PyAny>> {
    let py = wire.py();
    let message = match event {
        Event::Notice(pid, bytes) => unpickled(wire, pid, &bytes)?,
        Event::Over(pid, lost) => {
            let lost = lost.map(|lost| {
                let (job, i) = lost.book.unzip();
                (lost.task, job, i.and_then(number))
            });
            (OVER, (pid, lost)).into_pyobject(py)?.into_any()
        }
        Event::Drained => (DRAINED, ()).into_pyobject(py)?.into_any(),
        Event::Change => (CHANGE, ()).into_pyobject(py)?.into_any(),
    };
    Ok(message.unbind())
}

/// The number of a task in its job, if it has one.
fn number(i: i64) -> Option<i64> {
    (i >= 0).then_some(i)
}

fn unpickled<'py>(wire: &Bound<'py, PyAny>, pid: i32, bytes: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    let py = wire.py();
    wire.call_method1(intern!(py, "message_of"), (pid, PyBytes::new(py, bytes)))
}
