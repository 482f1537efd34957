//! Python memory as the system calls want it: buffers to send from and to receive into, and
//! `bytes` objects that are filled in place. And ours as Python wants it: views.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::ptr::NonNull;

use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::{PyBufferError, PyTypeError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyMemoryView};

use crate::sys::io::{Source, Target};

/// A bytes-like object that is being sent from. Keeps the object alive and its memory in place,
/// also while the GIL is released. Process-local.
pub enum Outgoing {
    Bytes(Py<PyBytes>),
    Other(PyUntypedBuffer),
}

impl Outgoing {
    /// `TypeError` if the object has no buffer, `BufferError` if it is not contiguous.
    pub fn get(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        if let Ok(bytes) = object.cast_exact::<PyBytes>() {
            return Ok(Self::Bytes(bytes.clone().unbind()));
        }
        contiguous(object).map(Self::Other)
    }

    pub fn source(&self, py: Python<'_>) -> Source<'_> {
        match self {
            Self::Bytes(bytes) => Source::from(bytes.as_bytes(py)),
            // SAFETY: a contiguous exported buffer stays where it is until it is released, which
            // dropping `self` does.
            Self::Other(buffer) => unsafe {
                Source::from_raw(buffer.buf_ptr().cast(), buffer.len_bytes())
            },
        }
    }
}

/// A writable bytes-like object that is being received into. Process-local.
pub struct Incoming(PyUntypedBuffer);

impl Incoming {
    /// `TypeError` if the object has no buffer or a read-only one, `BufferError` if it is not
    /// contiguous.
    pub fn get(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let buffer = contiguous(object)?;
        if buffer.readonly() {
            return Err(PyTypeError::new_err(
                "a writable bytes-like object is required",
            ));
        }
        Ok(Self(buffer))
    }

    pub fn len(&self) -> usize {
        self.0.len_bytes()
    }

    pub fn address(&self) -> usize {
        self.0.buf_ptr() as usize
    }
}

/// Memory that messages are received into.
pub trait Room {
    /// All of it, to receive into.
    fn target(&mut self) -> Target<'_>;

    /// All of it, to look at what has been received so far.
    fn source(&self) -> Source<'_>;
}

impl Room for Incoming {
    fn target(&mut self) -> Target<'_> {
        // SAFETY: as in `Outgoing::source`, and it is writable: `get` has checked.
        unsafe { Target::from_raw(self.0.buf_ptr().cast(), self.0.len_bytes()) }
    }

    fn source(&self) -> Source<'_> {
        // SAFETY: as in `Outgoing::source`.
        unsafe { Source::from_raw(self.0.buf_ptr().cast(), self.0.len_bytes()) }
    }
}

fn contiguous(object: &Bound<'_, PyAny>) -> PyResult<PyUntypedBuffer> {
    let buffer = match PyUntypedBuffer::get(object) {
        // ctypes leaves out the strides, which PyO3 wants and memoryview fills in.
        Err(error) if error.is_instance_of::<PyBufferError>(object.py()) => {
            PyUntypedBuffer::get(PyMemoryView::from(object)?.as_any())?
        }
        other => other?,
    };
    if buffer.is_c_contiguous() {
        Ok(buffer)
    } else {
        Err(PyBufferError::new_err(
            "memoryview: underlying buffer is not C-contiguous",
        ))
    }
}

/// What `__getbuffer__` of an object does that is a buffer of its own: `len` bytes from `start` on.
///
/// # Safety
/// `view` is null or the interpreter's, to be filled. The bytes are initialised and stay where they
/// are for as long as the object lives, and if `readonly` is false, Python may write to them.
pub unsafe fn fill_view(
    object: &Bound<'_, PyAny>,
    view: *mut ffi::Py_buffer,
    start: *const u8,
    len: usize,
    readonly: bool,
    flags: c_int,
) -> PyResult<()> {
    if view.is_null() {
        return Err(PyBufferError::new_err("no view to fill"));
    }
    let (memory, size) = (start.cast_mut().cast(), len as ffi::Py_ssize_t);
    // SAFETY: the caller vouches for the view and the bytes; the view holds the object.
    let failed = unsafe {
        ffi::PyBuffer_FillInfo(view, object.as_ptr(), memory, size, readonly.into(), flags)
    };
    if failed == 0 {
        Ok(())
    } else {
        Err(PyErr::fetch(object.py()))
    }
}

/// A `bytes` object that nobody has seen yet and whose memory is still being filled.
/// Process-local; a forked child that goes on filling its copy touches its own memory.
pub struct BytesInMaking {
    bytes: Py<PyBytes>,
    room: usize,
}

impl BytesInMaking {
    /// Uninitialised room for `room` bytes; `MemoryError` if there is none.
    pub fn new(py: Python<'_>, room: usize) -> PyResult<Self> {
        let size = ffi::Py_ssize_t::try_from(room)?;
        // SAFETY: a null pointer asks for uninitialised bytes; the result is a new reference to a
        // `bytes` object, or null with an exception set.
        let bytes = unsafe {
            let raw = ffi::PyBytes_FromStringAndSize(std::ptr::null(), size);
            Bound::from_owned_ptr_or_err(py, raw)?.cast_into_unchecked::<PyBytes>()
        };
        Ok(Self {
            bytes: bytes.unbind(),
            room,
        })
    }

    pub fn room(&self) -> usize {
        self.room
    }

    /// Changes the room and keeps the first `filled` bytes.
    pub fn resize(&mut self, py: Python<'_>, room: usize, filled: usize) -> PyResult<()> {
        let mut other = Self::new(py, room)?;
        // SAFETY: the object has memory for `room` bytes, of which `filled` have been written.
        let old = unsafe { Source::from_raw(self.memory().as_ptr(), filled.min(self.room)) };
        other.target(0).copy_from(old);
        *self = other;
        Ok(())
    }

    /// The memory from `filled` on.
    pub fn target(&mut self, filled: usize) -> Target<'_> {
        // SAFETY: the object has memory for `room` bytes, is alive while borrowed, and nobody but
        // `self` has a reference to it.
        let mut target = unsafe { Target::from_raw(self.memory().as_ptr(), self.room) };
        target.skip(filled);
        target
    }

    /// The finished object. All of its room must have been filled.
    pub fn finish(self) -> Py<PyBytes> {
        self.bytes
    }

    fn memory(&mut self) -> NonNull<u8> {
        // SAFETY: the pointer is to a `bytes` object, for which this cannot fail.
        let start = unsafe { ffi::PyBytes_AsString(self.bytes.as_ptr()) };
        NonNull::new(start.cast()).expect("a bytes object has memory")
    }
}

/// A `bytearray` that nobody has seen yet and whose memory is still being filled. Process-local, as
/// [`BytesInMaking`].
pub struct ArrayInMaking {
    array: Py<PyByteArray>,
    room: usize,
}

impl ArrayInMaking {
    /// Uninitialised room for `room` bytes; `MemoryError` if there is none.
    pub fn new(py: Python<'_>, room: usize) -> PyResult<Self> {
        let size = ffi::Py_ssize_t::try_from(room)?;
        // SAFETY: a null pointer asks for uninitialised memory; the result is a new reference to a
        // `bytearray`, or null with an exception set.
        let array = unsafe {
            let raw = ffi::PyByteArray_FromStringAndSize(std::ptr::null(), size);
            Bound::from_owned_ptr_or_err(py, raw)?.cast_into_unchecked::<PyByteArray>()
        };
        Ok(Self {
            array: array.unbind(),
            room,
        })
    }

    pub fn target(&mut self) -> Target<'_> {
        // SAFETY: the pointer is to a `bytearray` that nobody else has a reference to, so that it
        // is not resized; it has memory for `room` bytes.
        unsafe {
            let start = ffi::PyByteArray_AsString(self.array.as_ptr());
            Target::from_raw(start.cast(), self.room)
        }
    }

    /// The finished object. All of its room must have been filled.
    pub fn finish(self) -> Py<PyByteArray> {
        self.array
    }
}
