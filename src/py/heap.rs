//! The shared-memory arena: under `billiard/heap.py`.
#![allow(unsafe_code)] // the buffer protocol

use std::ffi::c_int;
use std::sync::Arc;

use pyo3::exceptions::PyAssertionError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple, PyType};

use super::buffer::fill_view;
use super::error::os_error;
use super::make;
use crate::ipc::arena;
use crate::ipc::family::Promise;

/// A mapped segment of shared memory. *Process-local* handle; a forked child inherits it.
#[pyclass(frozen, module = "billiard._core")]
struct Segment {
    segment: Arc<arena::Segment>,
}

#[pymethods]
impl Segment {
    /// What names the segment in all processes.
    #[getter]
    fn id<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.segment.id().to_be_bytes())
    }

    #[getter]
    fn fd(&self) -> PyResult<i32> {
        self.segment.fd().map_err(os_error)
    }

    /// Announces a process that will map the segment.
    fn lend(&self) -> Loan {
        Loan {
            loan: arena::Loan::new(&self.segment),
        }
    }

    /// Maps a segment that was lent to this process; takes the descriptor over.
    #[staticmethod]
    fn borrow(id: [u8; 16], fd: i32, promises: Vec<(u32, u32, u32, u64)>) -> PyResult<Self> {
        let promises: Vec<_> = promises
            .into_iter()
            .map(|(entry, version, maker, birth)| Promise {
                entry,
                version,
                maker,
                birth,
            })
            .collect();
        let segment = arena::borrow(u128::from_be_bytes(id), fd, &promises).map_err(os_error)?;
        Ok(Self { segment })
    }

    /// The block that the segment's maker gave out there.
    fn block(&self, offset: usize, size: usize) -> PyResult<Block> {
        let block = arena::Block::foreign(Arc::clone(&self.segment), offset, size);
        Ok(Block {
            block: Arc::new(block.map_err(os_error)?),
        })
    }

    fn __len__(&self) -> usize {
        self.segment.len()
    }
}

/// A segment lent to a process that is being started. *Process-local*; while it is held, the
/// process that made it waits for the other one to come.
#[pyclass(frozen, module = "billiard._core")]
struct Loan {
    loan: arena::Loan,
}

#[pymethods]
impl Loan {
    /// What the other process gives to `Segment.borrow`.
    #[getter]
    fn promises(&self) -> Vec<(u32, u32, u32, u64)> {
        let promises = self.loan.promises().iter();
        promises
            .map(|p| (p.entry, p.version, p.maker, p.birth))
            .collect()
    }
}

/// Shared bytes, freed with the last object that holds them. *Process-local* handle of
/// *process-shared* memory; a forked child inherits it.
#[pyclass(frozen, subclass, module = "billiard._core")]
pub struct Block {
    pub block: Arc<arena::Block>,
}

#[pymethods]
impl Block {
    /// A new block of `size` bytes, all zero; or another handle of a block.
    #[new]
    fn new(size: &Bound<'_, PyAny>) -> PyResult<Self> {
        if let Ok(other) = size.cast::<Self>() {
            return Ok(Self {
                block: Arc::clone(&other.get().block),
            });
        }
        let number = size
            .extract::<isize>()
            .ok()
            .filter(|&size| (0..isize::MAX).contains(&size));
        let Some(number) = number else {
            // A TypeError if it is no number at all.
            size.call_method0("__index__")?;
            let text = format!("size {size} is not in 0..{}", isize::MAX - 1);
            return Err(PyAssertionError::new_err(text));
        };
        let block = arena::Block::new(number as usize).map_err(os_error)?;
        Ok(Self {
            block: Arc::new(block),
        })
    }

    #[getter]
    fn size(&self) -> usize {
        self.block.size()
    }

    /// Where the block starts in its segment.
    #[getter]
    fn offset(&self) -> usize {
        self.block.offset()
    }

    /// Where this process sees the block.
    #[getter]
    fn address(&self) -> usize {
        self.block.address().as_ptr() as usize
    }

    #[getter]
    fn segment(&self) -> Segment {
        Segment {
            segment: Arc::clone(self.block.segment()),
        }
    }

    fn __len__(&self) -> usize {
        self.block.size()
    }

    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let block = &slf.get().block;
        let start = block.address().as_ptr();
        // SAFETY: the interpreter's view; the bytes stay mapped for as long as the block is held,
        // which the object does, and are there to be written to.
        unsafe { fill_view(slf.as_any(), view, start, block.size(), false, flags) }
    }
}

/// A new block of this class: without a call of its `__init__`.
#[pyfunction]
#[pyo3(signature = (class, size, /))]
fn new_block<'py>(
    class: &Bound<'py, PyType>,
    size: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, Block>> {
    make::bare(class, &PyTuple::new(class.py(), [size])?)
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Block>()?;
    module.add_class::<Loan>()?;
    module.add_class::<Segment>()?;
    module.add_function(wrap_pyfunction!(new_block, module)?)
}
