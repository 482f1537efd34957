//! Memory for messages that are unpickled and forgotten.
//!
//! New memory costs a page fault for every 4 KiB, more than the copy that fills it. A message that
//! nobody keeps is therefore received into memory that the last such message was in.
#![allow(unsafe_code)]

use std::ffi::c_int;

use pyo3::ffi;
use pyo3::prelude::*;

use super::buffer::{Room, fill_view};
use crate::sys::io::{Source, Target};
use crate::sys::mutex::Mutex;

/// Smaller messages are `bytes`: the allocator keeps memory of that size at hand by itself.
pub const LEAST: usize = 64 << 10;
/// Larger ones get memory of their own: it would be much to hold on to.
pub const MOST: usize = 8 << 20;

/// Memory that nobody uses at the moment. Process-local; a forked child goes on with its copy. The
/// mutex is held for an instant and with the GIL, so no other thread holds it at a fork.
static SPARE: Mutex<Vec<u8>> = Mutex::new(Vec::new());

/// A message in memory that returns to `SPARE` with the object. Python sees a read-only buffer.
/// Process-local.
#[pyclass(frozen, module = "billiard._core")]
pub struct Lent {
    /// Its length stays zero: what has been received is in its capacity.
    memory: Vec<u8>,
    size: usize,
}

impl Lent {
    /// Uninitialised room for a message of `size` bytes; `None` if there is no memory.
    pub fn new(size: usize) -> Option<Self> {
        let mut memory = std::mem::take(&mut *SPARE.lock());
        if memory.capacity() < size {
            memory = Vec::new();
            memory
                .try_reserve_exact(size.checked_next_power_of_two()?)
                .ok()?;
        }
        Some(Self { memory, size })
    }
}

impl Room for Lent {
    fn target(&mut self) -> Target<'_> {
        // SAFETY: the capacity is at least `size`, and borrowed while the target is.
        unsafe { Target::from_raw(self.memory.as_mut_ptr(), self.size) }
    }

    fn source(&self) -> Source<'_> {
        // SAFETY: as above; callers look at what they have filled.
        unsafe { Source::from_raw(self.memory.as_ptr(), self.size) }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut spare = SPARE.lock();
        if spare.capacity() < self.memory.capacity() {
            *spare = std::mem::take(&mut self.memory);
        }
    }
}

#[pymethods]
impl Lent {
    fn __len__(&self) -> usize {
        self.size
    }

    /// # Safety
    /// Called by the interpreter, with a view to be filled.
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let message = slf.get();
        let start = message.memory.as_ptr();
        // SAFETY: the interpreter's view; the memory of the object neither moves nor changes any
        // more and is initialised for `size` bytes: objects are made of whole messages only.
        unsafe { fill_view(slf.as_any(), view, start, message.size, true, flags) }
    }
}
