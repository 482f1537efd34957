//! The two ends of a segment of extents by themselves, for tests and benchmarks.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::{Outgoing, Source, pickle, unpickle};
use crate::ipc::extents::{Bounds, Pool, Receiver, table_size};
use crate::py::error::os_error;
use crate::sys::memory::take_over;
use crate::sys::segment::{PAGE, Segment};

fn head_size(entries: usize) -> PyResult<usize> {
    if entries == 0 || entries > 1 << 16 {
        return Err(PyValueError::new_err("entries must be in 1..65536"));
    }
    Ok(table_size(entries).next_multiple_of(PAGE))
}

/// Sends objects through a segment of its own. *Process-local*; a forked child cannot send.
#[pyclass(frozen, module = "billiard._core")]
pub struct ExtentSender {
    segment: Arc<Segment>,
    pool: Pool,
}

#[pymethods]
impl ExtentSender {
    #[new]
    #[pyo3(signature = (entries=1024, limit=None, idle=None))]
    fn new(entries: usize, limit: Option<usize>, idle: Option<usize>) -> PyResult<Self> {
        let head = head_size(entries)?;
        let segment = Segment::create(c"billiard-extents", head).map_err(os_error)?;
        let default = Bounds::default();
        let bounds = Bounds {
            lent: limit.unwrap_or(default.lent),
            idle: idle.unwrap_or(default.idle),
        };
        let pool = Pool::with_bounds(Arc::clone(&segment), 0, entries, head, bounds);
        Ok(Self { segment, pool })
    }

    #[getter]
    fn fd(&self) -> i32 {
        self.segment.raw_fd()
    }

    /// Bytes that are not known to have come back.
    #[getter]
    fn lent(&self) -> usize {
        self.pool.collect();
        self.pool.lent()
    }

    /// Bytes of memory that the segment takes.
    #[getter]
    fn resident(&self) -> PyResult<usize> {
        self.segment.resident_bytes().map_err(os_error)
    }

    /// The reference to the message, or None if there is no room.
    fn send(
        &self,
        py: Python<'_>,
        pickler: &Bound<'_, PyAny>,
        obj: &Bound<'_, PyAny>,
    ) -> PyResult<Option<u32>> {
        pickle(py, pickler, obj)?.send(py, &self.pool)
    }

    /// Gives the memory back that is idle.
    fn trim(&self) {
        self.pool.trim(0);
    }

    fn discard(&self, index: u32) -> bool {
        self.pool.discard(index)
    }

    fn reclaim(&self, holder: u32) {
        self.pool.reclaim(holder);
    }

    fn holders(&self) -> Vec<u32> {
        self.pool.holders()
    }

    /// The pickle of an object, whether there are buffers beside it, and bytes in all.
    #[staticmethod]
    fn pickle<'py>(
        py: Python<'py>,
        pickler: &Bound<'py, PyAny>,
        obj: &Bound<'py, PyAny>,
    ) -> PyResult<(Bound<'py, PyBytes>, bool, usize)> {
        let message = pickle(py, pickler, obj)?;
        let pickled = PyBytes::new(py, message.pickle_bytes());
        Ok((pickled, message.has_buffers(), message.size()))
    }

    /// The message of a pickle that was made before, as it would be in an extent.
    #[staticmethod]
    fn lay_out_pickle<'py>(pickle: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
        let message = Outgoing::from_pickle(pickle)?.to_vec().map_err(os_error)?;
        Ok(PyBytes::new(pickle.py(), &message))
    }

    /// The message as it would be in an extent.
    #[staticmethod]
    fn lay_out<'py>(
        py: Python<'py>,
        pickler: &Bound<'py, PyAny>,
        obj: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let message = pickle(py, pickler, obj)?.to_vec().map_err(os_error)?;
        Ok(PyBytes::new(py, &message))
    }
}

/// Receives what an `ExtentSender` sends. *Process-local*; a forked child makes its own.
#[pyclass(frozen, module = "billiard._core")]
pub struct ExtentReceiver {
    receiver: Receiver,
}

#[pymethods]
impl ExtentReceiver {
    /// Takes the descriptor over.
    #[new]
    #[pyo3(signature = (fd, holder, entries=1024))]
    fn new(fd: i32, holder: u32, entries: usize) -> PyResult<Self> {
        let head = head_size(entries)?;
        let fd: OwnedFd = take_over(fd).map_err(os_error)?;
        if holder >= crate::ipc::extents::SENDER {
            return Err(PyValueError::new_err("no number for a receiver"));
        }
        let segment = Segment::open(fd, head).map_err(os_error)?;
        let receiver = Receiver::new(segment, 0, entries, holder);
        Ok(Self { receiver })
    }

    fn receive<'py>(&self, py: Python<'py>, index: u32) -> PyResult<Bound<'py, PyAny>> {
        let taken = self.receiver.take(index);
        let taken = taken.map_err(|why| PyRuntimeError::new_err(format!("{why:?}")))?;
        unpickle(py, Source::Extent(taken))
    }

    /// Takes a message and never lets go of it.
    fn hold(&self, index: u32) -> PyResult<()> {
        let taken = self.receiver.take(index);
        std::mem::forget(taken.map_err(|why| PyRuntimeError::new_err(format!("{why:?}")))?);
        Ok(())
    }

    /// What `ExtentSender.lay_out` laid out.
    #[staticmethod]
    fn read<'py>(message: &Bound<'py, PyBytes>) -> PyResult<Bound<'py, PyAny>> {
        unpickle(message.py(), Source::Heap(message.as_bytes().to_vec()))
    }
}
