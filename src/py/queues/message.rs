//! Objects as messages, and back: the one place that knows what is in a record.
//!
//! ```text
//!  tag     bytes of the record
//!  ------  ---------------------------------------------------------------
//!  PICKLE  a pickle
//!  BYTES   what is in a `bytes` object
//!  LONG    where the rest is, beside the ring: see `long.rs`
//! ```

use std::cell::RefCell;

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyList, PyTuple};

use super::long::Long;
use crate::ipc::channel::{Channel, LONGEST};
use crate::py::buffer::Outgoing;
use crate::py::codec;
use crate::sys::io::Source;

pub const PICKLE: u32 = 0;
pub const BYTES: u32 = 1;
pub const LONG: u32 = 2;

/// Python's part of it: `dumps(obj)` gives a pickle, or a pickle and a list of the buffers that are
/// not in it; `loads(pickle, buffers)` is the inverse.
static PICKLER: PyOnceLock<(Py<PyAny>, Py<PyAny>)> = PyOnceLock::new();

pub fn pickle_with(py: Python<'_>, dumps: Py<PyAny>, loads: Py<PyAny>) {
    let _ = PICKLER.set(py, (dumps, loads)); // the module may be imported again
}

fn pickler(py: Python<'_>) -> PyResult<&(Py<PyAny>, Py<PyAny>)> {
    PICKLER
        .get(py)
        .ok_or_else(|| pyo3::exceptions::PyRuntimeError::new_err("no pickler"))
}

thread_local! {
    /// Memory for short pickles. A forked child goes on with its thread's copy.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A message that is ready to be put.
pub enum Message {
    Pickle(Vec<u8>),
    Bytes(Py<PyBytes>),
    /// a pickle that Python made
    View(Outgoing),
    Long(Long),
}

impl Message {
    /// The object as it is now. Errors are the pickler's, or `OSError` if there is no memory.
    pub fn new(obj: &Bound<'_, PyAny>, channel: &std::sync::Arc<Channel>) -> PyResult<Self> {
        let py = obj.py();
        if let Ok(bytes) = obj.cast_exact::<PyBytes>() {
            let whole = bytes.as_bytes();
            if whole.len() <= LONGEST {
                return Ok(Self::Bytes(bytes.clone().unbind()));
            }
            return Long::new(py, channel, BYTES, &[Source::from(whole)], &[]).map(Self::Long);
        }
        if let Some(pickle) = encode_plain(obj) {
            return Self::of_pickle(py, channel, pickle);
        }
        let made = pickler(py)?.0.bind(py).call1((obj,))?;
        let Ok(parts) = made.cast_exact::<PyTuple>() else {
            let view = Outgoing::get(&made)?;
            let source = view.source(py);
            if source.len() <= LONGEST {
                return Ok(Self::View(view));
            }
            return Long::new(py, channel, PICKLE, &[source], &[]).map(Self::Long);
        };
        let buffers = parts.get_item(1)?.cast_into::<PyList>()?;
        let mut views = vec![Outgoing::get(&parts.get_item(0)?)?];
        let mut readonly = Vec::new();
        for buffer in buffers {
            readonly.push(buffer.getattr("readonly")?.is_truthy()?);
            views.push(Outgoing::get(&buffer)?);
        }
        let sources: Vec<_> = views.iter().map(|view| view.source(py)).collect();
        Long::new(py, channel, PICKLE, &sources, &readonly).map(Self::Long)
    }

    fn of_pickle(
        py: Python<'_>,
        channel: &std::sync::Arc<Channel>,
        pickle: Vec<u8>,
    ) -> PyResult<Self> {
        if pickle.len() <= LONGEST {
            return Ok(Self::Pickle(pickle));
        }
        Long::new(py, channel, PICKLE, &[Source::from(&pickle[..])], &[]).map(Self::Long)
    }

    pub fn tag(&self) -> u32 {
        match self {
            Self::Pickle(_) | Self::View(_) => PICKLE,
            Self::Bytes(_) => BYTES,
            Self::Long(_) => LONG,
        }
    }

    /// What goes into the record.
    #[inline]
    pub fn source(&self, py: Python<'_>) -> Source<'_> {
        match self {
            Self::Pickle(pickle) => Source::from(&pickle[..]),
            Self::Bytes(bytes) => Source::from(bytes.as_bytes(py)),
            Self::View(view) => view.source(py),
            Self::Long(long) => Source::from(long.record()),
        }
    }

    /// The queue has it: what is beside the ring belongs to the record now.
    #[inline]
    pub fn sent(self) {
        match self {
            Self::Long(long) => long.sent(),
            Self::Pickle(pickle) if pickle.capacity() <= LONGEST => SCRATCH.set(pickle),
            _ => {}
        }
    }
}

/// Plain values, without Python's pickler; `None` for all others.
#[inline]
fn encode_plain(obj: &Bound<'_, PyAny>) -> Option<Vec<u8>> {
    let mut pickle = SCRATCH.take();
    pickle.clear();
    if codec::encode(obj, &mut pickle) {
        return Some(pickle);
    }
    SCRATCH.set(pickle);
    None
}

/// The object in a pickle.
#[inline]
pub fn decode<'py>(py: Python<'py>, pickle: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    match codec::decode(py, pickle) {
        Some(object) => Ok(object),
        None => loads(py, PyBytes::new(py, pickle).as_any(), None),
    }
}

/// The object in a pickle that Python has to read.
pub fn loads<'py>(
    py: Python<'py>,
    pickle: &Bound<'py, PyAny>,
    buffers: Option<Bound<'py, PyList>>,
) -> PyResult<Bound<'py, PyAny>> {
    pickler(py)?.1.bind(py).call1((pickle, buffers))
}
