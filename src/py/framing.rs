//! Framed send and receive: the core of `billiard/connection.py`'s connections.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use nix::errno::Errno;
use pyo3::exceptions::{PyEOFError, PyOSError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyInt};

use super::block::{Deadline, block_on};
use super::buffer::{BytesInMaking, Incoming, Outgoing, Room};
use super::error::os_error;
use super::lent::{LEAST, Lent, MOST};
use crate::ipc::frame::{Decoder, Header, next_room};
use crate::ipc::spin::{self, Spinner};
use crate::sys::cpu::many_cpus;
use crate::sys::io::{self, Source, Target};
use crate::sys::mutex::Mutex;

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
pub struct Framing {
    incoming: Mutex<Option<Partial>>,
    /// The rest of a frame whose beginning has been written.
    outgoing: Mutex<Option<Vec<u8>>>,
    habits: Habits,
    closed: AtomicBool,
}

/// The descriptor of a connection, to be asked for before each system call: when another thread has
/// closed the connection, the number is soon another file's.
#[derive(Clone, Copy)]
pub struct Descriptor<'a> {
    fd: RawFd,
    closed: Option<&'a AtomicBool>,
}

impl Descriptor<'_> {
    fn get(self) -> nix::Result<RawFd> {
        match self.closed {
            Some(closed) if closed.load(Ordering::Acquire) => Err(Errno::EBADF),
            _ => Ok(self.fd),
        }
    }
}

impl From<RawFd> for Descriptor<'_> {
    fn from(fd: RawFd) -> Self {
        Self { fd, closed: None }
    }
}

/// What a connection has learnt about when messages come.
///
/// Looking first, with the GIL, saves handing the GIL to and fro; where it finds nothing it is a
/// system call for nothing. So after a look in vain the next few receives go to wait at once.
#[derive(Default)]
struct Habits {
    waits_at_once: AtomicU8,
    spinner: Spinner,
}

impl Habits {
    /// Receives that wait at once after a look in vain.
    const IN_A_ROW: u8 = 16;

    fn looks_first(&self) -> bool {
        let left = self.waits_at_once.load(Ordering::Relaxed);
        self.waits_at_once
            .store(left.saturating_sub(1), Ordering::Relaxed);
        left == 0
    }

    fn looked_in_vain(&self) {
        self.waits_at_once.store(Self::IN_A_ROW, Ordering::Relaxed);
    }
}

#[pymethods]
impl Framing {
    #[new]
    fn new() -> Self {
        Self {
            incoming: Mutex::new(None),
            outgoing: Mutex::new(None),
            habits: Habits::default(),
            closed: AtomicBool::new(false),
        }
    }

    /// The connection is about to be closed: calls of other threads go no further.
    fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Sends one message.
    #[pyo3(signature = (fd, buffer, /))]
    fn send(&self, py: Python<'_>, fd: RawFd, buffer: &Bound<'_, PyAny>) -> PyResult<()> {
        let fd = self.descriptor(fd);
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
        let fd = self.descriptor(fd);
        let mut partial = self.incoming.lock().take().unwrap_or_default();
        let mut outcome = receive_length(py, fd, maxlength, &mut partial.decoder, &self.habits);
        if let Ok(Outcome::Whole) = outcome {
            outcome = receive_body(py, fd, &mut partial);
        }
        let whole = self.settle(partial, outcome)?;
        Ok(whole
            .and_then(|partial| partial.body)
            .map(BytesInMaking::finish))
    }

    /// Receives one message to be unpickled: as `bytes`, or in memory that is used again when the
    /// object returned has gone; `None` if its length cannot be true.
    #[pyo3(signature = (fd, /))]
    fn recv_pickle<'py>(&self, py: Python<'py>, fd: RawFd) -> PyResult<Option<Bound<'py, PyAny>>> {
        let fd = self.descriptor(fd);
        let mut partial = self.incoming.lock().take().unwrap_or_default();
        let mut outcome = receive_length(py, fd, None, &mut partial.decoder, &self.habits);
        let size = partial.decoder.size().unwrap_or_default();
        let mut lent = None;
        if let Ok(Outcome::Whole) = &outcome {
            if partial.body.is_none() && (LEAST..=MOST).contains(&size) {
                lent = Lent::new(size);
            }
            outcome = match &mut lent {
                Some(room) => receive_into(py, fd, &mut partial, room, 0),
                None => receive_body(py, fd, &mut partial),
            };
        }
        let Some(partial) = self.settle(partial, outcome)? else {
            return Ok(None);
        };
        Ok(Some(match (partial.body, lent) {
            (None, Some(lent)) => Bound::new(py, lent)?.into_any(),
            (body, _) => body.map(BytesInMaking::finish).into_pyobject(py)?,
        }))
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
        let fd = self.descriptor(fd);
        let mut into = Incoming::get(buffer)?;
        let room = into.len().saturating_sub(offset);
        let mut partial = self.incoming.lock().take().unwrap_or_default();
        let mut outcome = receive_length(py, fd, None, &mut partial.decoder, &self.habits);
        let size = partial.decoder.size().unwrap_or_default();
        match &outcome {
            Ok(Outcome::Whole) if partial.body.is_none() && size <= room => {
                outcome = receive_into(py, fd, &mut partial, &mut into, offset);
            }
            Ok(Outcome::Whole) => outcome = receive_body(py, fd, &mut partial),
            _ => {}
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
    fn descriptor(&self, fd: RawFd) -> Descriptor<'_> {
        Descriptor {
            fd,
            closed: Some(&self.closed),
        }
    }

    /// Writes two pieces; what is left of them is kept if part of the frame is out (`begun`: part
    /// was out before).
    fn write(
        &self,
        py: Python<'_>,
        fd: Descriptor<'_>,
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
pub fn write_all(
    py: Python<'_>,
    fd: Descriptor<'_>,
    first: Source<'_>,
    second: Source<'_>,
    done: &mut usize,
) -> PyResult<nix::Result<()>> {
    let total = first.len() + second.len();
    match fd.get().and_then(|fd| io::write2_nowait(fd, first, second)) {
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
            let written = fd
                .get()
                .and_then(|fd| io::write2(fd, first.skip(*done), rest));
            match written {
                Ok(n) => *done += n,
                Err(Errno::EINTR) => return Err(Errno::EINTR),
                Err(errno) => return Ok(Err(errno)),
            }
        }
        Ok(Ok(()))
    })
}

/// Goes on with a message whose length is known until it is whole, in `partial.body`.
fn receive_body(py: Python<'_>, fd: Descriptor<'_>, partial: &mut Partial) -> PyResult<Outcome> {
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

/// Receives a whole message, whose length is known and fits, into `room` from byte `offset` on. What
/// an error cuts short is in `partial.body`.
fn receive_into(
    py: Python<'_>,
    fd: Descriptor<'_>,
    partial: &mut Partial,
    room: &mut impl Room,
    offset: usize,
) -> PyResult<Outcome> {
    let size = partial.decoder.size().unwrap_or_default();
    let mut got = 0;
    let mut target = room.target();
    target.skip(offset);
    let outcome = fill(py, fd, target.first(size), &mut got, None);
    if outcome.is_err() {
        let mut body = BytesInMaking::new(py, next_room(size, got))?;
        let beginning = room.source().skip(offset).first(got);
        body.target(0).copy_from(beginning);
        partial.body = Some(body);
    }
    let _ = partial.decoder.advance(got);
    outcome
}

/// Goes on with a message until its length is known.
fn receive_length(
    py: Python<'_>,
    fd: Descriptor<'_>,
    maxlength: Option<u64>,
    decoder: &mut Decoder,
    habits: &Habits,
) -> PyResult<Outcome> {
    loop {
        let begun = !decoder.is_at_seam();
        let habits = decoder.is_fresh().then_some(habits);
        let Some(gap) = decoder.missing_length() else {
            break;
        };
        let mut got = 0;
        let outcome = fill(py, fd, Target::from(gap), &mut got, habits);
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
    fd: Descriptor<'_>,
    mut target: Target<'_>,
    got: &mut usize,
    habits: Option<&Habits>,
) -> PyResult<Outcome> {
    if target.is_empty() {
        return Ok(Outcome::Whole);
    }
    if habits.is_none_or(Habits::looks_first) {
        match look(fd, &target).transpose().map_err(os_error)? {
            Some(0) => return Ok(Outcome::EndOfFile { inside: false }),
            Some(n) => {
                *got += n;
                target.skip(n);
            }
            None => {
                if let Some(habits) = habits {
                    habits.looked_in_vain();
                }
            }
        }
        if target.is_empty() {
            return Ok(Outcome::Whole);
        }
    }
    block_on(py, Deadline::Never, |_| {
        let mut spun = habits.and_then(|habits| {
            habits
                .spinner
                .spin(spin::ANSWER, many_cpus, || look(fd, &target))
        });
        while !target.is_empty() {
            let read = spun.take().unwrap_or_else(|| io::read(fd.get()?, &target));
            match read? {
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

/// A read that does not wait; `None` if there is nothing to read.
fn look(fd: Descriptor<'_>, target: &Target<'_>) -> Option<nix::Result<usize>> {
    match fd.get().and_then(|fd| io::read_nowait(fd, target)) {
        Err(Errno::EAGAIN) => None,
        other => Some(other),
    }
}
