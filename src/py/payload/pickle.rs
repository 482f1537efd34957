//! From objects to messages.
#![allow(unsafe_code)] // memory that Python objects keep

use std::sync::OnceLock;

use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::PyKeyError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyMemoryView, PyTuple, PyType};

use super::{ALIGN, BUFFER, HEADER, LARGE, LONG_COPY};
use crate::ipc::extents::{Extent, Pool};
use crate::py::buffer;
use crate::py::error::os_error;
use crate::sys::io::{Source, vec_with_room};
use crate::sys::mutex::Mutex;

/// Shorter pieces are put together before they are written.
const PIECE: usize = 16 << 10;

/// Picklers are kept after short pickles only: their tables of what they have seen never shrink.
const SHORT: usize = 2 << 10;

/// An object on its way: its pickle and its large buffers, most of it still where the object has
/// it. *Process-local*.
///
/// It can be written without the GIL, by any thread. What the object's owner changes meanwhile is
/// sent as it is by then. Dropped without the GIL, its references wait for the next thread that
/// takes it.
#[derive(Debug)]
pub struct Outgoing {
    pickle: Vec<Chunk>,
    pickle_len: usize,
    buffers: Vec<Buffer>,
    size: usize,
    joined: OnceLock<Vec<u8>>,
}

#[derive(Debug)]
struct Buffer {
    chunk: Chunk,
    offset: usize,
    readonly: bool,
}

/// Memory, and what keeps it.
#[derive(Debug)]
struct Chunk {
    start: *const u8,
    len: usize,
    _keep: Keep,
}

#[derive(Debug)]
#[expect(dead_code, reason = "held for their memory")]
enum Keep {
    Object(Py<PyAny>),
    Own(Vec<u8>),
}

// SAFETY: only an address and a length of memory that stays where it is until the chunk is
// dropped; it is read through `Source`, which allows for others who write.
unsafe impl Send for Chunk {}
// SAFETY: as above.
unsafe impl Sync for Chunk {}

impl Chunk {
    fn bytes(bytes: &Bound<'_, PyBytes>) -> Self {
        let memory = bytes.as_bytes();
        Self {
            start: memory.as_ptr(),
            len: memory.len(),
            _keep: Keep::Object(bytes.clone().into_any().unbind()),
        }
    }

    fn own(memory: Vec<u8>) -> Self {
        Self {
            start: memory.as_ptr(),
            len: memory.len(),
            _keep: Keep::Own(memory),
        }
    }

    fn source(&self) -> Source<'_> {
        // SAFETY: `_keep` keeps the memory: `bytes` and a vector that nobody changes do not move
        // theirs, and a memoryview keeps a buffer where it is.
        unsafe { Source::from_raw(self.start, self.len) }
    }
}

/// Pickles `obj` with a class like `ForkingPickler`: called with what `pickle.Pickler` is called
/// with. Buffers of 64 KiB and more are left where they are, as are `bytes` of that size.
///
/// Errors are those of the pickler.
pub fn pickle(
    py: Python<'_>,
    pickler: &Bound<'_, PyAny>,
    obj: &Bound<'_, PyAny>,
) -> PyResult<Outgoing> {
    let tool = Tool::get(py, pickler)?;
    let dumped = tool
        .pickler
        .bind(py)
        .call_method1(intern!(py, "dump"), (obj,));
    let parts = std::mem::take(&mut *tool.sink.get().parts.lock());
    dumped?;
    let outgoing = Outgoing::new(parts);
    if outgoing.pickle_len < SHORT {
        tool.put_back(py)?;
    }
    Ok(outgoing)
}

impl Outgoing {
    /// From a pickle that was made in another way: a bytes-like object.
    pub fn from_pickle(pickle: &Bound<'_, PyAny>) -> PyResult<Self> {
        let sink = Sink::default();
        sink.write(pickle)?;
        Ok(Self::new(sink.parts.into_inner()))
    }

    /// From a pickle that is at hand.
    pub fn from_vec(pickle: Vec<u8>) -> Self {
        let mut parts = Parts::default();
        parts.pickle.push(Chunk::own(pickle));
        Self::new(parts)
    }

    fn new(parts: Parts) -> Self {
        let pickle_len = parts.pickle.iter().map(|chunk| chunk.len).sum::<usize>();
        let mut size = HEADER + parts.buffers.len() * BUFFER + pickle_len;
        let buffers = parts.buffers.into_iter().map(|(chunk, readonly)| {
            let offset = size.next_multiple_of(ALIGN);
            size = offset + chunk.len;
            Buffer {
                chunk,
                offset,
                readonly,
            }
        });
        Self {
            buffers: buffers.collect(),
            pickle: parts.pickle,
            pickle_len,
            size,
            joined: OnceLock::new(),
        }
    }

    /// Bytes of the message as laid out in an extent or in the heap.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Whether it takes so long to copy that the GIL is released for it.
    pub fn is_long(&self) -> bool {
        self.size >= LONG_COPY
    }

    /// Whether there is more than the pickle.
    pub fn has_buffers(&self) -> bool {
        !self.buffers.is_empty()
    }

    /// The pickle alone. It is in one piece unless it is large; if not, it is put together.
    pub fn pickle_bytes(&self) -> &[u8] {
        match &*self.pickle {
            // SAFETY: pickles are in `bytes` or vectors, that nobody changes, and which the chunk
            // keeps.
            [chunk] => unsafe { std::slice::from_raw_parts(chunk.start, chunk.len) },
            chunks => self.joined.get_or_init(|| {
                let mut joined = Vec::with_capacity(self.pickle_len);
                for chunk in chunks {
                    joined.extend(chunk.source().to_vec());
                }
                joined
            }),
        }
    }

    /// Copies the message into an extent of at least its size. An error if the system has no
    /// memory. Not with the GIL held if it is large.
    pub fn write_to(&self, extent: &mut Extent) -> nix::Result<()> {
        self.lay_out(|offset, bytes| extent.write(offset, bytes))
    }

    /// The message in the heap; `ENOMEM` if there is no memory for it.
    pub fn to_vec(&self) -> nix::Result<Vec<u8>> {
        let mut memory = vec_with_room(self.size)?;
        self.lay_out(|offset, bytes| {
            memory.resize(offset, 0); // what is between buffers
            bytes.append_to(&mut memory);
            Ok(())
        })?;
        Ok(memory)
    }

    /// Sends the message: the reference to the extent that it is in. `None` if the pool gives
    /// none. `OSError` if the system has no memory.
    pub fn send(&self, py: Python<'_>, pool: &Pool) -> PyResult<Option<u32>> {
        let send = || {
            let Some(mut extent) = pool.allocate(self.size)? else {
                return Ok(None);
            };
            self.write_to(&mut extent)?;
            Ok(Some(extent.into_index()))
        };
        let sent = if self.is_long() {
            py.detach(send)
        } else {
            send()
        };
        sent.map_err(os_error)
    }

    /// Gives the pieces of the message to `put`, in order.
    fn lay_out(
        &self,
        mut put: impl FnMut(usize, Source<'_>) -> nix::Result<()>,
    ) -> nix::Result<()> {
        let mut pending = Vec::with_capacity(HEADER + BUFFER * self.buffers.len() + 256);
        let mut word = |value: usize| pending.extend((value as u64).to_le_bytes());
        word(self.pickle_len);
        word(self.buffers.len());
        for buffer in &self.buffers {
            word(buffer.offset);
            word(buffer.chunk.len);
            word(buffer.readonly.into());
        }
        let mut offset = 0;
        for chunk in &self.pickle {
            if chunk.len >= PIECE {
                put(offset, pending.as_slice().into())?;
                offset += pending.len();
                pending.clear();
                put(offset, chunk.source())?;
                offset += chunk.len;
            } else {
                chunk.source().append_to(&mut pending);
            }
        }
        put(offset, pending.as_slice().into())?;
        for buffer in &self.buffers {
            put(buffer.offset, buffer.chunk.source())?;
        }
        Ok(())
    }
}

/// What a pickler has produced so far.
#[derive(Debug, Default)]
struct Parts {
    pickle: Vec<Chunk>,
    buffers: Vec<(Chunk, bool)>,
}

/// The file of a pickler, and its callback for buffers. *Process-local*; the mutex is held for
/// instants, with the GIL.
#[pyclass(frozen, module = "billiard._core")]
#[derive(Debug, Default)]
struct Sink {
    parts: Mutex<Parts>,
}

#[pymethods]
impl Sink {
    /// Large `bytes` come here as the object that is pickled; all else is the pickler's own.
    fn write(&self, data: &Bound<'_, PyAny>) -> PyResult<usize> {
        let chunk = match data.cast_exact::<PyBytes>() {
            Ok(bytes) => Chunk::bytes(bytes),
            // Somebody's `bytearray`, which must not be kept from growing meanwhile.
            Err(_) => Chunk::own(buffer::Outgoing::get(data)?.source(data.py()).to_vec()),
        };
        let len = chunk.len;
        self.parts.lock().pickle.push(chunk);
        Ok(len)
    }

    /// Whether the pickler shall have the buffer in the pickle.
    fn __call__(&self, buffer: &Bound<'_, PyAny>) -> PyResult<bool> {
        let Ok(view) = PyUntypedBuffer::get(buffer) else {
            return Ok(true);
        };
        let contiguous = view.is_c_contiguous() || view.is_fortran_contiguous();
        if view.len_bytes() < LARGE || !contiguous {
            return Ok(true);
        }
        let chunk = Chunk {
            start: view.buf_ptr().cast(),
            len: view.len_bytes(),
            // Unlike `view` it can be dropped without the GIL.
            _keep: Keep::Object(PyMemoryView::from(buffer)?.into_any().unbind()),
        };
        self.parts.lock().buffers.push((chunk, view.readonly()));
        Ok(false)
    }
}

/// The `dispatch_table` of a pickler: `ForkingPickler`'s reducers, then those of `copyreg`, as
/// they are at the moment. *Process-local*.
#[pyclass(frozen, module = "billiard._core")]
struct Reducers {
    class: Py<PyType>,
}

#[pymethods]
impl Reducers {
    fn __getitem__<'py>(&self, kind: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let py = kind.py();
        let class = self.class.bind(py);
        for table in [
            intern!(py, "_extra_reducers"),
            intern!(py, "_copyreg_dispatch_table"),
        ] {
            let reducers = class.getattr(table)?;
            if reducers.contains(kind)? {
                return reducers.get_item(kind);
            }
        }
        // Sockets get theirs when somebody looks.
        let modules = py.import(intern!(py, "sys"))?.getattr("modules")?;
        if let Ok(socket) = modules.get_item(intern!(py, "socket"))
            && socket
                .getattr(intern!(py, "socket"))
                .is_ok_and(|class| class.is(kind))
        {
            let table = class.call_method0(intern!(py, "_dispatch_table"))?;
            return table.get_item(kind);
        }
        Err(PyKeyError::new_err(kind.clone().unbind()))
    }
}

/// A pickler and what it writes to. *Process-local*.
struct Tool {
    class: Py<PyAny>,
    pickler: Py<PyAny>,
    sink: Py<Sink>,
    /// whether it can be used for other objects
    kept: bool,
}

/// The pickler of the last object, unless it is in use: by another thread, or further up by an
/// object that pickles something while it is pickled. A forked child that finds none makes one.
/// The mutex is held for instants, with the GIL.
static SPARE: Mutex<Option<Tool>> = Mutex::new(None);

impl Tool {
    fn get(py: Python<'_>, class: &Bound<'_, PyAny>) -> PyResult<Self> {
        let spare = SPARE.lock().take();
        if let Some(tool) = spare
            && tool.class.is(class)
        {
            return Ok(tool);
        }
        let sink = Bound::new(py, Sink::default())?;
        let plain = plain(class)?;
        let maker = plain.as_ref().map_or(class, |(base, _)| base);
        let pickler = maker.call1((&sink, 5, true, &sink))?;
        if let Some((_, class)) = &plain {
            let reducers = Reducers {
                class: class.clone().unbind(),
            };
            pickler.setattr(intern!(py, "dispatch_table"), Bound::new(py, reducers)?)?;
        }
        Ok(Self {
            class: class.clone().unbind(),
            pickler: pickler.unbind(),
            sink: sink.unbind(),
            kept: plain.is_some(),
        })
    }

    /// Keeps it for the next object.
    fn put_back(self, py: Python<'_>) -> PyResult<()> {
        if self.kept {
            // It would keep what it has seen.
            self.pickler
                .bind(py)
                .call_method0(intern!(py, "clear_memo"))?;
            let other = SPARE.lock().replace(self);
            drop(other); // not under the lock
        }
        Ok(())
    }
}

/// `ForkingPickler` itself, whose `__init__` does nothing but set a `dispatch_table`: what it is
/// derived from, and it. Making its base costs half, and a pickler of that can be kept.
fn plain<'py>(
    class: &Bound<'py, PyAny>,
) -> PyResult<Option<(Bound<'py, PyAny>, Bound<'py, PyType>)>> {
    let py = class.py();
    let Ok(class) = class.cast::<PyType>() else {
        return Ok(None);
    };
    let base = py
        .import(intern!(py, "_pickle"))?
        .getattr(intern!(py, "Pickler"))?;
    let bases = class
        .getattr(intern!(py, "__bases__"))?
        .cast_into::<PyTuple>()?;
    let own = class.getattr(intern!(py, "__dict__"))?;
    let is_plain = bases.len() == 1
        && bases.get_item(0)?.is(&base)
        && own.contains(intern!(py, "_dispatch_table"))?
        && own.contains(intern!(py, "_extra_reducers"))?;
    Ok(is_plain.then(|| (base, class.clone())))
}
