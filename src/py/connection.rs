//! Framed send and receive, descriptor passing, waiting: under `billiard/connection.py` and `reduction.py`.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use parking_lot::Mutex;
use pyo3::exceptions::{PyEOFError, PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyInt};

use super::block::{Deadline, block_on};
use super::buffer::{BytesInMaking, Incoming, Outgoing};
use super::error::os_error;
use crate::ipc::frame::{Decoder, Header, next_room};
use crate::sys::fdpass;
use crate::sys::io::{self, Source, Target};
use crate::sys::poll::{PollSet, Readiness, poll_one};

/// A message that has come in part.
#[derive(Default)]
struct Partial {
    decoder: Decoder,
    /// Made when the length is known.
    body: Option<BytesInMaking>,
}

/// How an attempt to receive ended, errors aside.
#[derive(Clone, Copy)]
enum Outcome {
    Whole,
    /// The length is above what the caller allows, or cannot be true.
    Refused,
    EndOfFile {
        inside: bool,
    },
}

/// Sends and receives the frames of one connection.
///
/// Process-local. A frame that a signal handler's exception or a non-blocking descriptor cuts short
/// is kept here and taken up by the next call, so that the stream does not lose its message
/// boundaries. A forked child has a copy of what was kept: of use to whichever process goes on with
/// the connection. The mutexes are held for an instant and with the GIL, never while waiting, so no
/// other thread holds one when a process forks.
#[pyclass(frozen, module = "billiard._core")]
struct Framing {
    incoming: Mutex<Option<Partial>>,
    /// The rest of a frame whose beginning has been written.
    outgoing: Mutex<Option<Vec<u8>>>,
    patience: Patience,
}

/// Whether messages tend to be there when they are asked for.
///
/// Looking first, with the GIL, saves handing the GIL to and fro; where it finds nothing it is a
/// system call for nothing. So after a look in vain the next few receives go to wait at once.
#[derive(Default)]
struct Patience(AtomicU8);

impl Patience {
    /// Receives that wait at once after a look in vain.
    const WAITS: u8 = 16;

    fn looks_first(&self) -> bool {
        let waits = self.0.load(Ordering::Relaxed);
        self.0.store(waits.saturating_sub(1), Ordering::Relaxed);
        waits == 0
    }

    fn looked_in_vain(&self) {
        self.0.store(Self::WAITS, Ordering::Relaxed);
    }
}

#[pymethods]
impl Framing {
    #[new]
    fn new() -> Self {
        Self {
            incoming: Mutex::new(None),
            outgoing: Mutex::new(None),
            patience: Patience::default(),
        }
    }

    /// Sends one message.
    #[pyo3(signature = (fd, buffer, /))]
    fn send(&self, py: Python<'_>, fd: RawFd, buffer: &Bound<'_, PyAny>) -> PyResult<()> {
        let buffer = Outgoing::get(buffer)?;
        let body = buffer.source(py);
        let rest = self.outgoing.lock().take();
        if let Some(rest) = rest {
            self.write(
                py,
                fd,
                Source::from(&rest[..]),
                Source::from(&b""[..]),
                true,
            )?;
        }
        let header = Header::of(body.len());
        self.write(py, fd, Source::from(header.as_slice()), body, false)
    }

    /// Receives one message; `None` if its length is above `maxlength` or cannot be true.
    #[pyo3(signature = (fd, maxlength=None, /))]
    fn recv(
        &self,
        py: Python<'_>,
        fd: RawFd,
        maxlength: Option<u64>,
    ) -> PyResult<Option<Py<PyBytes>>> {
        let mut partial = self.incoming.lock().take().unwrap_or_default();
        let outcome = receive(py, fd, maxlength, &mut partial, &self.patience);
        let whole = self.settle(partial, outcome)?;
        Ok(whole
            .and_then(|partial| partial.body)
            .map(BytesInMaking::finish))
    }

    /// Receives one message into `buffer` from byte `offset` on and returns its length; the message
    /// itself if it does not fit; `None` if its length cannot be true.
    #[pyo3(signature = (fd, buffer, offset, /))]
    fn recv_into<'py>(
        &self,
        py: Python<'py>,
        fd: RawFd,
        buffer: &Bound<'py, PyAny>,
        offset: usize,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let mut into = Incoming::get(buffer)?;
        let room = into.len().saturating_sub(offset);
        let mut partial = self.incoming.lock().take().unwrap_or_default();
        let mut outcome = receive_length(py, fd, None, &mut partial.decoder, &self.patience);
        let size = partial.decoder.size().unwrap_or_default();
        if let (Ok(Outcome::Whole), None, true) = (&outcome, &partial.body, size <= room) {
            // The common case: straight into the caller's memory.
            let mut got = 0;
            let mut target = into.target();
            target.skip(offset);
            outcome = fill(py, fd, target.first(size), &mut got, None);
            if outcome.is_err() {
                let mut body = BytesInMaking::new(py, next_room(size, got))?;
                body.target(0)
                    .copy_from(into.source().skip(offset).first(got));
                partial.body = Some(body);
            }
            let _ = partial.decoder.advance(got);
        } else if let Ok(Outcome::Whole) = outcome {
            outcome = receive(py, fd, None, &mut partial, &self.patience);
        }
        let Some(partial) = self.settle(partial, outcome)? else {
            return Ok(None);
        };
        if let Some(body) = partial.body {
            let bytes = body.finish();
            if size > room {
                return Ok(Some(bytes.into_bound(py).into_any()));
            }
            let mut target = into.target();
            target.skip(offset);
            target.copy_from(Source::from(bytes.as_bytes(py)));
        }
        Ok(Some(PyInt::new(py, size).into_any()))
    }
}

impl Framing {
    /// Writes two pieces; what is left of them is kept if part of the frame is out (`begun`: part
    /// was out before).
    fn write(
        &self,
        py: Python<'_>,
        fd: RawFd,
        first: Source<'_>,
        second: Source<'_>,
        begun: bool,
    ) -> PyResult<()> {
        let mut done = 0;
        let result = write_all(py, fd, first, second, &mut done);
        if matches!(
            result,
            Ok(Ok(())) | Ok(Err(Errno::EPIPE | Errno::ECONNRESET))
        ) {
            return result?.map_err(os_error);
        }
        if begun || done > 0 {
            let mut rest = first.skip(done).to_vec();
            rest.extend(second.skip(done.saturating_sub(first.len())).to_vec());
            *self.outgoing.lock() = Some(rest);
        }
        result?.map_err(os_error)
    }

    /// Ends an attempt: keeps what an error cut short, turns the end of the file into an exception.
    fn settle(&self, partial: Partial, outcome: PyResult<Outcome>) -> PyResult<Option<Partial>> {
        match outcome {
            Ok(Outcome::Whole) => Ok(Some(partial)),
            Ok(Outcome::Refused) => Ok(None),
            Ok(Outcome::EndOfFile { inside: false }) => Err(PyEOFError::new_err(())),
            Ok(Outcome::EndOfFile { inside: true }) => Err(PyOSError::new_err((
                Errno::EIO as i32,
                "got end of file during message",
            ))),
            Err(error) => {
                if !partial.decoder.is_fresh() {
                    *self.incoming.lock() = Some(partial);
                }
                Err(error)
            }
        }
    }
}

/// The outer error is a signal handler's, the inner one the descriptor's; `done` counts the bytes
/// written in any case.
fn write_all(
    py: Python<'_>,
    fd: RawFd,
    first: Source<'_>,
    second: Source<'_>,
    done: &mut usize,
) -> PyResult<nix::Result<()>> {
    let total = first.len() + second.len();
    match io::write2_nowait(fd, first, second) {
        Ok(n) => *done = n,
        Err(Errno::EAGAIN) => {}
        Err(errno) => return Ok(Err(errno)),
    }
    if *done == total {
        return Ok(Ok(()));
    }
    block_on(py, Deadline::Never, |_| {
        while *done < total {
            let rest = second.skip(done.saturating_sub(first.len()));
            match io::write2(fd, first.skip(*done), rest) {
                Ok(n) => *done += n,
                Err(Errno::EINTR) => return Err(Errno::EINTR),
                Err(errno) => return Ok(Err(errno)),
            }
        }
        Ok(Ok(()))
    })
}

/// Goes on with a message until it is whole.
fn receive(
    py: Python<'_>,
    fd: RawFd,
    maxlength: Option<u64>,
    partial: &mut Partial,
    patience: &Patience,
) -> PyResult<Outcome> {
    match receive_length(py, fd, maxlength, &mut partial.decoder, patience)? {
        Outcome::Whole => {}
        other => return Ok(other),
    }
    let decoder = &mut partial.decoder;
    let size = decoder.size().unwrap_or_default();
    let body = match &mut partial.body {
        Some(body) => body,
        none => none.insert(BytesInMaking::new(py, next_room(size, 0))?),
    };
    while !decoder.is_complete() {
        if decoder.received() == body.room() {
            body.resize(py, next_room(size, body.room()), body.room())?;
        }
        let mut got = 0;
        let outcome = fill(py, fd, body.target(decoder.received()), &mut got, None);
        let inside = decoder.received() + got > 0;
        let _ = decoder.advance(got);
        if let Outcome::EndOfFile { .. } = outcome? {
            return Ok(Outcome::EndOfFile { inside });
        }
    }
    Ok(Outcome::Whole)
}

/// Goes on with a message until its length is known.
fn receive_length(
    py: Python<'_>,
    fd: RawFd,
    maxlength: Option<u64>,
    decoder: &mut Decoder,
    patience: &Patience,
) -> PyResult<Outcome> {
    loop {
        let begun = !decoder.is_at_seam();
        let patience = decoder.is_fresh().then_some(patience);
        let Some(gap) = decoder.missing_length() else {
            break;
        };
        let mut got = 0;
        let outcome = fill(py, fd, Target::from(gap), &mut got, patience);
        if decoder.advance(got).is_err() {
            return Ok(Outcome::Refused);
        }
        if let Outcome::EndOfFile { inside } = outcome? {
            return Ok(Outcome::EndOfFile {
                inside: inside || begun,
            });
        }
    }
    let size = decoder.size().unwrap_or_default() as u64;
    Ok(if maxlength.is_some_and(|most| size > most) {
        Outcome::Refused
    } else {
        Outcome::Whole
    })
}

/// Fills `target`; `got` counts the bytes in any case.
fn fill(
    py: Python<'_>,
    fd: RawFd,
    mut target: Target<'_>,
    got: &mut usize,
    patience: Option<&Patience>,
) -> PyResult<Outcome> {
    if target.is_empty() {
        return Ok(Outcome::Whole);
    }
    if patience.is_none_or(Patience::looks_first) {
        match io::read_nowait(fd, &target) {
            Ok(0) => return Ok(Outcome::EndOfFile { inside: false }),
            Ok(n) => {
                *got += n;
                target.skip(n);
            }
            Err(Errno::EAGAIN) => {
                if let Some(patience) = patience {
                    patience.looked_in_vain();
                }
            }
            Err(errno) => return Err(os_error(errno)),
        }
        if target.is_empty() {
            return Ok(Outcome::Whole);
        }
    }
    block_on(py, Deadline::Never, |_| {
        while !target.is_empty() {
            match io::read(fd, &target)? {
                0 => return Ok(Outcome::EndOfFile { inside: *got > 0 }),
                n => {
                    *got += n;
                    target.skip(n);
                }
            }
        }
        Ok(Outcome::Whole)
    })
}

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
    let result = write_all(py, fd, source, Source::from(&b""[..]), &mut done);
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
    module.add_function(wrap_pyfunction!(send_offset, module)?)?;
    module.add_function(wrap_pyfunction!(read, module)?)?;
    module.add_function(wrap_pyfunction!(sendfd, module)?)?;
    module.add_function(wrap_pyfunction!(recvfd, module)?)?;
    module.add_function(wrap_pyfunction!(address_of_buffer, module)?)?;
    module.add_function(wrap_pyfunction!(make_pipe, module)?)?;
    module.add_function(wrap_pyfunction!(poll_readable, module)?)?;
    module.add_function(wrap_pyfunction!(wait_readable, module)?)
}
