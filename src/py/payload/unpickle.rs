//! From messages to objects.
#![allow(unsafe_code)] // the buffer protocol

use std::ffi::c_int;
use std::ops::Range;
use std::sync::Arc;

use nix::errno::Errno;
use pyo3::exceptions::{PyMemoryError, PyRuntimeError};
use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyList, PyMemoryView};

use super::{BUFFER, HEADER, LARGE, LONG_COPY, MAPPED};
use crate::ipc::extents::{Private, Shared, Taken};
use crate::py::buffer::{BytesInMaking, fill_view};
use crate::py::error::os_error;

/// Where a message is. *Process-local*.
#[derive(Debug)]
pub enum Source {
    Extent(Taken),
    Heap(Vec<u8>),
}

/// The object that is in a message.
///
/// Arrays and other objects with large buffers get memory of their own, which they may write to:
/// the message itself, in the heap or mapped privately. `RuntimeError` if the message is damaged;
/// otherwise the errors of the unpickler.
pub fn unpickle(py: Python<'_>, source: Source) -> PyResult<Bound<'_, PyAny>> {
    let memory = Memory::of(py, source).map_err(|errno| match errno {
        Errno::ENOMEM => PyMemoryError::new_err("no memory for a message"),
        errno => os_error(errno),
    })?;
    let layout = Layout::read(memory.bytes())
        // What others see is never given out to be written to, whatever the header says now.
        .filter(|layout| layout.buffers.is_empty() || !matches!(memory, Memory::Shared(_)))
        .ok_or_else(|| PyRuntimeError::new_err("a message is damaged"))?;
    if layout.buffers.is_empty()
        && let Some(bytes) = bytes_alone(&memory.bytes()[layout.pickle.clone()])
    {
        return copied(py, bytes);
    }
    let memory = Arc::new(memory);
    let pickle = Part::new(&memory, layout.pickle, true);
    if layout.buffers.is_empty() {
        return loads(py)?.call1((pickle,));
    }
    let buffers = PyList::empty(py);
    for (range, readonly) in layout.buffers {
        let part = Bound::new(py, Part::new(&memory, range, readonly))?;
        buffers.append(PyMemoryView::from(part.as_any())?)?;
    }
    drop(memory);
    let options = PyDict::new(py);
    options.set_item(intern!(py, "buffers"), buffers)?;
    loads(py)?.call((pickle,), Some(&options))
}

/// What is in the pickle of large `bytes` and nothing else, as the C pickler writes it.
fn bytes_alone(pickle: &[u8]) -> Option<&[u8]> {
    let (len, rest) = match pickle {
        [0x80, _, b'B', rest @ ..] => {
            let (len, rest) = rest.split_first_chunk()?;
            (u32::from_le_bytes(*len).into(), rest)
        }
        [0x80, _, 0x8e, rest @ ..] => {
            let (len, rest) = rest.split_first_chunk()?;
            (u64::from_le_bytes(*len), rest)
        }
        _ => return None,
    };
    let (bytes, end) = rest.split_at_checked(usize::try_from(len).ok()?)?;
    matches!(end, [0x94, b'.'] | [b'.']).then_some(bytes)
}

/// A `bytes` object, for which the interpreter will mostly have to get new memory.
fn copied<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    let mut object = BytesInMaking::new(py, bytes.len())?;
    let mut target = object.target(0);
    if bytes.len() < LONG_COPY {
        target.copy_from(bytes.into());
    } else {
        py.detach(|| {
            target.prefault();
            target.copy_from(bytes.into());
        });
    }
    Ok(object.finish().into_bound(py).into_any())
}

fn loads(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    static LOADS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    LOADS.import(py, "_pickle", "loads")
}

/// Where the parts of a message are in it.
#[derive(Debug, PartialEq)]
struct Layout {
    pickle: Range<usize>,
    buffers: Vec<(Range<usize>, bool)>,
}

impl Layout {
    /// How many buffers a message has that begins like this.
    fn count(start: &[u8]) -> Option<usize> {
        let [_, count] = words(start.get(..HEADER)?);
        Some(count)
    }

    /// `None`: it is not true.
    fn read(message: &[u8]) -> Option<Self> {
        let [pickle_len, count] = words(message.get(..HEADER)?);
        let table_len = count.checked_mul(BUFFER)?;
        let table = message.get(HEADER..HEADER.checked_add(table_len)?)?;
        let within = |offset: usize, len: usize| {
            let end = offset.checked_add(len)?;
            (end <= message.len()).then_some(offset..end)
        };
        let buffers = table.chunks_exact(BUFFER).map(|entry| {
            let [offset, len, readonly] = words(entry);
            Some((within(offset, len)?, readonly != 0))
        });
        Some(Self {
            pickle: within(HEADER + table_len, pickle_len)?,
            buffers: buffers.collect::<Option<_>>()?,
        })
    }
}

fn words<const N: usize>(bytes: &[u8]) -> [usize; N] {
    std::array::from_fn(|index| {
        let word = bytes[index * 8..][..8].try_into().expect("eight bytes");
        usize::try_from(u64::from_le_bytes(word)).unwrap_or(usize::MAX)
    })
}

/// Memory that a message is in.
#[derive(Debug)]
enum Memory {
    /// and where it begins
    Heap(Vec<u8>, usize),
    Shared(Shared),
    Private(Private),
}

impl Memory {
    fn of(py: Python<'_>, source: Source) -> nix::Result<Self> {
        let taken = match source {
            Source::Heap(heap) => return Ok(Self::heap(heap)),
            Source::Extent(taken) => taken,
        };
        // A buffer is at least that large.
        let has_buffers = taken.len() >= LARGE
            && Layout::count(&taken.start(HEADER)?).is_some_and(|count| count > 0);
        if !has_buffers {
            return taken.shared().map(Self::Shared);
        }
        if taken.len() >= MAPPED && !taken.is_pressed() {
            return taken.private().map(Self::Private);
        }
        let copy = if taken.len() < LONG_COPY {
            taken.copy_out()
        } else {
            py.detach(|| taken.copy_out())
        };
        copy.map(Self::heap)
    }

    fn heap(mut heap: Vec<u8>) -> Self {
        let start = heap.as_mut_ptr() as usize;
        Self::Heap(heap, start)
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Heap(heap, _) => heap,
            Self::Shared(shared) => shared.bytes(),
            Self::Private(private) => private.bytes(),
        }
    }

    fn address(&self) -> usize {
        match self {
            Self::Heap(_, start) => *start,
            Self::Shared(shared) => shared.bytes().as_ptr() as usize,
            Self::Private(private) => private.address(),
        }
    }
}

/// A part of a message, as a buffer. *Process-local*. The memory of the message lives for as long
/// as any of its parts; each of those that can be written to belongs to one object.
#[pyclass(frozen, module = "billiard._core")]
struct Part {
    start: usize,
    len: usize,
    readonly: bool,
    _memory: Arc<Memory>,
}

impl Part {
    fn new(memory: &Arc<Memory>, range: Range<usize>, readonly: bool) -> Self {
        Self {
            start: memory.address() + range.start,
            len: range.len(),
            readonly,
            _memory: Arc::clone(memory),
        }
    }
}

#[pymethods]
impl Part {
    /// # Safety
    /// Called by the interpreter, with a view to be filled.
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let part = slf.get();
        let start = part.start as *const u8;
        // SAFETY: the interpreter's view; the object holds the memory, and the range is inside of
        // it (`Layout::read`). Only the pickle is in memory that is not this process's own, and
        // that part is read-only. Rust has no reference to the bytes any more.
        unsafe { fill_view(slf.as_any(), view, start, part.len, part.readonly, flags) }
    }
}
