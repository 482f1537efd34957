//! Calls and outcomes as bytes, and back.
//!
//! ```text
//!  a call      NAMED      pickle of the function, a name │ pickle of the arguments
//!              otherwise  pickle of (function, arguments, keyword arguments)
//!  an outcome  a pickle; that of a failure is of an ExceptionInfo
//! ```
//!
//! Plain values are written and read by [`codec`](super::super::codec), others by the C pickler with
//! the package's reducers; what does not fit into a ring goes to an extent.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use pyo3::exceptions::PyException;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyTuple};

use crate::ipc::extents::Pool as Extents;
use crate::pool::message::{Body, Call, Outcome};
use crate::pool::shared::{NAMED, TaskHead};
use crate::py::codec;
use crate::py::error::os_error;
use crate::py::payload::{self, Outgoing, Source};
use crate::sys::mutex::Mutex;

thread_local! {
    /// Where messages are put together. Process-local; whoever uses it runs no Python code
    /// meanwhile.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Room for the next message, empty.
fn scratch<R>(f: impl FnOnce(&mut Vec<u8>) -> R) -> R {
    SCRATCH.with_borrow_mut(|buffer| {
        buffer.clear();
        f(buffer)
    })
}

/// The function that was last sent, and its pickle: programs send the same one many times.
/// Process-local; the mutex is held for an instant and with the GIL.
#[derive(Default)]
pub struct Names(Mutex<Option<Name>>);

/// A function, and its pickle.
type Name = (Py<PyAny>, Arc<[u8]>);

impl Names {
    /// The pickle of a function that travels by its name alone; `None` if this one does not.
    fn pickle(
        &self,
        wire: &Bound<'_, PyAny>,
        func: &Bound<'_, PyAny>,
    ) -> PyResult<Option<Arc<[u8]>>> {
        let py = func.py();
        if let Some((known, name)) = &*self.0.lock()
            && known.is(func)
        {
            return Ok(Some(name.clone()));
        }
        let name = wire.call_method1(intern!(py, "name_of"), (func,))?;
        let Ok(name) = name.cast_into::<PyBytes>() else {
            return Ok(None);
        };
        let name: Arc<[u8]> = name.as_bytes().into();
        let before = self.0.lock().replace((func.clone().unbind(), name.clone()));
        drop(before);
        Ok(Some(name))
    }
}

/// Encodes a call and gives it to `submit`, as name and arguments or whole.
pub fn encode_call<R>(
    wire: &Bound<'_, PyAny>,
    names: &Names,
    extents: &Extents,
    func: &Bound<'_, PyAny>,
    args: &Bound<'_, PyAny>,
    kwargs: &Bound<'_, PyAny>,
    submit: impl FnOnce(Result<(&[u8], &[u8]), Call>) -> R,
) -> PyResult<R> {
    let no_kwargs = kwargs
        .cast::<PyDict>()
        .is_ok_and(|kwargs| kwargs.is_empty());
    if no_kwargs
        && args.is_exact_instance_of::<PyTuple>()
        && let Some(name) = names.pickle(wire, func)?
        && name.len() < TaskHead::ROOM / 2
    {
        let mut submit = Some(submit);
        let done = scratch(|buffer| {
            if codec::encode(args, buffer) && name.len() + buffer.len() <= TaskHead::ROOM {
                submit.take().map(|submit| submit(Ok((&name, buffer))))
            } else {
                None
            }
        });
        if let Some(done) = done {
            return Ok(done);
        }
        let call = PyTuple::new(func.py(), [func, args, kwargs])?;
        let call = pack_call(wire, extents, &call)?;
        return Ok((submit.expect("not used yet"))(Err(call)));
    }
    let call = PyTuple::new(func.py(), [func, args, kwargs])?;
    let call = pack_call(wire, extents, &call)?;
    Ok(submit(Err(call)))
}

/// A call that the pickler has to see.
fn pack_call(
    wire: &Bound<'_, PyAny>,
    extents: &Extents,
    call: &Bound<'_, PyTuple>,
) -> PyResult<Call> {
    let py = call.py();
    let packed = match pickle(wire, call.as_any()) {
        Ok(packed) => packed,
        // A function without a name that others could import goes by value.
        Err(refusal) if is_refusal(wire, &refusal)? => {
            let by_value = wire.call_method1(intern!(py, "encode_by_value"), (call, refusal))?;
            Outgoing::from_pickle(&by_value)?
        }
        Err(error) => return Err(error),
    };
    if fits(&packed, TaskHead::ROOM) {
        return Ok(Call::Inline {
            flags: 0,
            func: 0,
            bytes: packed.pickle_bytes().into(),
        });
    }
    Ok(match packed.send(py, extents)? {
        Some(reference) => Call::Extent(reference, packed.size()),
        None => Call::Heap(packed.to_vec().map_err(os_error)?.into_boxed_slice()),
    })
}

/// Is it a pickle of at most so many bytes, and nothing else?
fn fits(packed: &Outgoing, most: usize) -> bool {
    // Of a large one the pieces would be put together just to see its length.
    !packed.has_buffers() && packed.size() <= most + 16 && packed.pickle_bytes().len() <= most
}

fn is_refusal(wire: &Bound<'_, PyAny>, error: &PyErr) -> PyResult<bool> {
    let py = wire.py();
    let refusals = wire.getattr(intern!(py, "REFUSALS"))?;
    error.value(py).is_instance(&refusals)
}

fn pickle(wire: &Bound<'_, PyAny>, object: &Bound<'_, PyAny>) -> PyResult<Outgoing> {
    let py = wire.py();
    payload::pickle(py, &wire.getattr(intern!(py, "ForkingPickler"))?, object)
}

/// Unpickles bytes that only this process can change.
pub fn unpickle<'py>(wire: &Bound<'py, PyAny>, bytes: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    let py = wire.py();
    if let Some(value) = codec::decode(py, bytes) {
        return Ok(value);
    }
    let loads = wire.getattr(intern!(py, "loads"))?;
    loads.call1((PyBytes::new(py, bytes),))
}

/// Functions by the pickles of their names. Of a worker; it keeps those that it has been sent.
#[derive(Default)]
pub struct Known {
    last: Option<(Box<[u8]>, Py<PyAny>)>,
    all: HashMap<Box<[u8]>, Py<PyAny>>,
}

impl Known {
    fn get<'py>(&mut self, wire: &Bound<'py, PyAny>, name: &[u8]) -> PyResult<Bound<'py, PyAny>> {
        let py = wire.py();
        if let Some((last, func)) = &self.last
            && **last == *name
        {
            return Ok(func.bind(py).clone());
        }
        let func = match self.all.get(name) {
            Some(func) => func.clone_ref(py),
            None => {
                let func = unpickle(wire, name)?.unbind();
                self.all.insert(name.into(), func.clone_ref(py));
                func
            }
        };
        self.last = Some((name.into(), func.clone_ref(py)));
        Ok(func.into_bound(py))
    }
}

/// What a worker is to call.
pub struct Work<'py> {
    pub func: Bound<'py, PyAny>,
    pub args: Bound<'py, PyAny>,
    pub kwargs: Option<Bound<'py, PyAny>>,
}

/// Decodes a call that was in a slot.
pub fn decode_call<'py>(
    wire: &Bound<'py, PyAny>,
    known: &mut Known,
    head: &TaskHead,
    bytes: &[u8],
) -> PyResult<Work<'py>> {
    let (func, body) = bytes.split_at(head.func as usize);
    if head.flags & NAMED != 0 {
        return Ok(Work {
            func: known.get(wire, func)?,
            args: unpickle(wire, body)?,
            kwargs: None,
        });
    }
    whole_call(unpickle(wire, body)?)
}

/// Decodes a call that was in an extent.
pub fn decode_large_call<'py>(py: Python<'py>, source: Source) -> PyResult<Work<'py>> {
    whole_call(payload::unpickle(py, source)?)
}

fn whole_call(call: Bound<'_, PyAny>) -> PyResult<Work<'_>> {
    let (func, args, kwargs) = call.extract()?;
    Ok(Work {
        func,
        args,
        kwargs: Some(kwargs),
    })
}

impl<'py> Work<'py> {
    /// Calls it, as `func(*args, **kwargs)`.
    pub fn call(&self) -> PyResult<Bound<'py, PyAny>> {
        let py = self.func.py();
        let args = match self.args.cast_exact::<PyTuple>() {
            Ok(args) => args.clone(),
            Err(_) => self
                .args
                .try_iter()?
                .collect::<PyResult<Vec<_>>>()
                .and_then(|items| PyTuple::new(py, items))?,
        };
        match &self.kwargs {
            None => self.func.call1(args),
            Some(kwargs) => {
                let kwargs = match kwargs.cast_exact::<PyDict>() {
                    Ok(kwargs) => kwargs.clone(),
                    Err(_) => {
                        let copy = PyDict::new(py);
                        copy.update(kwargs.cast()?)?;
                        copy
                    }
                };
                self.func.call(args, Some(&kwargs))
            }
        }
    }
}

/// Encodes an outcome; a small one is in the scratch buffer then, which `send` is given.
pub fn encode_outcome<R>(
    wire: &Bound<'_, PyAny>,
    value: &Bound<'_, PyAny>,
    most: usize,
    send: impl FnOnce(Result<&[u8], Outgoing>) -> R,
) -> PyResult<R> {
    let mut send = Some(send);
    let done = scratch(|buffer| {
        if !codec::encode(value, buffer) {
            return None;
        }
        let send = send.take()?;
        Some(if buffer.len() <= most {
            send(Ok(buffer))
        } else {
            send(Err(Outgoing::from_vec(std::mem::take(buffer))))
        })
    });
    if let Some(done) = done {
        return Ok(done);
    }
    let send = send.expect("not used yet");
    let packed = pickle(wire, value)?;
    if fits(&packed, most) {
        return Ok(send(Ok(packed.pickle_bytes())));
    }
    Ok(send(Err(packed)))
}

/// An outcome, or what has kept it from being decoded and the outcome.
pub type Decoded<'py> = Result<(bool, Bound<'py, PyAny>), Box<(PyErr, Outcome)>>;

/// What became of a task, as its caller sees it: whether it is a value, and the value or an
/// ExceptionInfo. What cannot be decoded is a failure. An exception that is none (a signal's handler
/// has raised it) is an error, and the outcome is given back for another time.
pub fn decode_outcome<'py>(wire: &Bound<'py, PyAny>, outcome: Outcome) -> Decoded<'py> {
    let py = wire.py();
    let (success, body) = match outcome {
        Outcome::Sent(success, body) => (success, body),
        Outcome::Local(info) => {
            let info = info.downcast::<Py<PyAny>>();
            let info = info.map_or_else(|_| py.None(), |info| *info);
            return Ok((false, info.into_bound(py)));
        }
    };
    let (size, decoded, body) = match body {
        Body::Short(len, bytes) => {
            let decoded = unpickle(wire, &bytes[..len.into()]);
            (len.into(), decoded, Some(body))
        }
        Body::Pickle(bytes) => {
            let decoded = unpickle(wire, &bytes);
            (bytes.len(), decoded, Some(Body::Pickle(bytes)))
        }
        Body::Extent(taken) => {
            let size = taken.len();
            (size, payload::unpickle(py, Source::Extent(taken)), None)
        }
        Body::Copied(bytes) => {
            let size = bytes.len();
            (size, payload::unpickle(py, Source::Heap(bytes)), None)
        }
    };
    let error = match decoded {
        Ok(value) => return Ok((success, value)),
        Err(error) => error,
    };
    let passing = !error.is_instance_of::<PyException>(py);
    if passing && let Some(body) = body {
        return Err(Box::new((error, Outcome::Sent(success, body))));
    }
    let cause = error.clone_ref(py).into_value(py);
    match wire.call_method1(intern!(py, "undecodable"), (cause, size)) {
        Ok(info) if passing => Err(Box::new((error, local(&info)))),
        Ok(info) => Ok((false, info)),
        Err(other) => {
            let info = failure(wire, error);
            let info = info.unwrap_or_else(|_| py.None().into_bound(py));
            Err(Box::new((other, local(&info))))
        }
    }
}

/// The number of a job of the engine, which it has once somebody has asked. Process-local; the mutex
/// is held for an instant and with the GIL.
#[derive(Default)]
pub struct JobNumber(Mutex<Option<i64>>);

impl JobNumber {
    pub fn get(&self, wire: &Bound<'_, PyAny>) -> PyResult<i64> {
        if let Some(job) = *self.0.lock() {
            return Ok(job);
        }
        let new = wire
            .call_method0(intern!(wire.py(), "new_job"))?
            .extract()?;
        Ok(*self.0.lock().get_or_insert(new))
    }
}

/// A failure that was found in this process.
pub fn local(info: &Bound<'_, PyAny>) -> Outcome {
    Outcome::Local(Box::new(info.clone().unbind()))
}

/// The exception that is being handled, or `error`, as an ExceptionInfo.
pub fn failure<'py>(wire: &Bound<'py, PyAny>, error: PyErr) -> PyResult<Bound<'py, PyAny>> {
    let py = wire.py();
    wire.call_method1(intern!(py, "info_of"), (error.into_value(py),))
}
