//! Pipes, waiting, raw reads and writes, descriptor passing: under `billiard/connection.py` and
//! `reduction.py`. Messages are in `framing.rs`.

use std::os::fd::RawFd;
use std::time::Duration;

use nix::errno::Errno;
use pyo3::exceptions::{PyEOFError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;

use super::block::{Deadline, block_on};
use super::buffer::{Incoming, Outgoing, Room};
use super::error::os_error;
use super::framing::{Framing, write_all};
use super::lent::Lent;
use crate::sys::fdpass;
use crate::sys::io::{self, Source};
use crate::sys::poll::{PollSet, Readiness, poll_one};

/// Writes `buffer` from byte `offset` on, as far as the descriptor takes it: all of it if that is a
/// blocking one. Returns the number of bytes written.
#[pyfunction]
#[pyo3(signature = (fd, buf, offset))]
fn send_offset(
    py: Python<'_>,
    fd: RawFd,
    buf: &Bound<'_, PyAny>,
    offset: usize,
) -> PyResult<usize> {
    let buffer = Outgoing::get(buf)?;
    let mut done = 0;
    let source = buffer.source(py).skip(offset);
    let result = write_all(py, fd.into(), source, Source::from(&b""[..]), &mut done);
    match result? {
        Err(errno) if done == 0 => Err(os_error(errno)),
        _ => Ok(done),
    }
}

/// Reads up to `size` bytes (zero: as many as fit) into `buffer`; returns their number.
#[pyfunction]
#[pyo3(signature = (fd, buffer, size=0, /))]
fn read(py: Python<'_>, fd: RawFd, buffer: &Bound<'_, PyAny>, size: isize) -> PyResult<usize> {
    let mut into = Incoming::get(buffer)?;
    let size = usize::try_from(size).map_err(|_| PyValueError::new_err("negative len for read"))?;
    if size > into.len() {
        return Err(PyValueError::new_err(
            "Buffer too small for requested bytes",
        ));
    }
    if into.len() == 0 {
        return Err(os_error(Errno::EINVAL));
    }
    let size = if size == 0 { into.len() } else { size };
    let target = into.target().first(size);
    match io::read_nowait(fd, &target) {
        Err(Errno::EAGAIN) => block_on(py, Deadline::Never, |_| io::read(fd, &target)),
        other => other.map_err(os_error),
    }
}

/// Sends descriptor `fd` over the Unix socket `sockfd`.
#[pyfunction]
#[pyo3(signature = (sockfd, fd, /))]
fn sendfd(py: Python<'_>, sockfd: RawFd, fd: RawFd) -> PyResult<()> {
    block_on(py, Deadline::Never, |_| {
        fdpass::send_fds(sockfd, &[0], &[fd]).map(drop)
    })
}

/// Receives a descriptor over the Unix socket `sockfd`.
#[pyfunction]
#[pyo3(signature = (sockfd, /))]
fn recvfd(py: Python<'_>, sockfd: RawFd) -> PyResult<RawFd> {
    let (n, mut fds) = block_on(py, Deadline::Never, |_| fdpass::recv_fds(sockfd, &mut [0]))?;
    match (fds.pop(), fds.is_empty()) {
        (Some(fd), true) => Ok(io::into_raw(fd)),
        (None, _) if n == 0 => Err(PyEOFError::new_err(())),
        _ => Err(PyRuntimeError::new_err(
            "did not receive exactly one file descriptor",
        )),
    }
}

/// Address and length in bytes of a writable buffer.
#[pyfunction]
#[pyo3(signature = (obj, /))]
fn address_of_buffer(obj: &Bound<'_, PyAny>) -> PyResult<(usize, usize)> {
    let buffer = Incoming::get(obj)?;
    Ok((buffer.address(), buffer.len()))
}

/// A new channel as two descriptors: connected sockets if `duplex`, else a pipe's reading and
/// writing end. The flags make the first or the second one non-blocking.
#[pyfunction]
#[pyo3(signature = (duplex, rnonblock, wnonblock, /))]
fn make_pipe(duplex: bool, rnonblock: bool, wnonblock: bool) -> PyResult<(RawFd, RawFd)> {
    let make = if duplex { io::stream_pair } else { io::pipe };
    let (first, second) = make((rnonblock, wnonblock)).map_err(os_error)?;
    Ok((io::into_raw(first), io::into_raw(second)))
}

/// Whether `fd` has something to read (or has reached its end) within `timeout` seconds.
#[pyfunction]
#[pyo3(signature = (fd, timeout, /))]
fn poll_readable(py: Python<'_>, fd: RawFd, timeout: Option<f64>) -> PyResult<bool> {
    let deadline = Deadline::after(timeout)?;
    let mut found = match poll_one(fd, Some(Duration::ZERO)) {
        Err(Errno::EINTR) => Readiness::Quiet,
        other => other.map_err(os_error)?,
    };
    if found == Readiness::Quiet && !deadline.passed() {
        found = block_on(py, deadline, |left| poll_one(fd, left))?;
    }
    match found {
        Readiness::Invalid => Err(invalid(fd)),
        other => Ok(other == Readiness::Ready),
    }
}

/// Those of `fds` that have something to read (or have reached their end) within `timeout` seconds.
#[pyfunction]
#[pyo3(signature = (fds, timeout, /))]
fn wait_readable(py: Python<'_>, fds: Vec<RawFd>, timeout: Option<f64>) -> PyResult<Vec<RawFd>> {
    let deadline = Deadline::after(timeout)?;
    if let Some(fd) = fds.iter().find(|fd| **fd < 0) {
        return Err(invalid(*fd));
    }
    let mut set = PollSet::new(fds);
    let found = match set.wait(Some(Duration::ZERO)) {
        Err(Errno::EINTR) => 0,
        other => other.map_err(os_error)?,
    };
    if found == 0 && !deadline.passed() {
        block_on(py, deadline, |left| set.wait(left))?;
    }
    set.results()
        .filter(|(_, found)| *found != Readiness::Quiet)
        .map(|(fd, found)| {
            if found == Readiness::Invalid {
                Err(invalid(fd))
            } else {
                Ok(fd)
            }
        })
        .collect()
}

fn invalid(fd: RawFd) -> PyErr {
    PyValueError::new_err(format!("invalid file descriptor {fd}"))
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Framing>()?;
    module.add_class::<Lent>()?;
    module.add_function(wrap_pyfunction!(send_offset, module)?)?;
    module.add_function(wrap_pyfunction!(read, module)?)?;
    module.add_function(wrap_pyfunction!(sendfd, module)?)?;
    module.add_function(wrap_pyfunction!(recvfd, module)?)?;
    module.add_function(wrap_pyfunction!(address_of_buffer, module)?)?;
    module.add_function(wrap_pyfunction!(make_pipe, module)?)?;
    module.add_function(wrap_pyfunction!(poll_readable, module)?)?;
    module.add_function(wrap_pyfunction!(wait_readable, module)?)
}
