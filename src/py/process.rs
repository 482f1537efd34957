//! Starting, waiting for and signalling processes: under `billiard/process.py` and `popen_*.py`.

use std::ffi::CString;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::errno::Errno;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;

use super::block::{Deadline, block_on};
use super::error::{os_error, os_error_with_filename};
use crate::sys::fork::pid;
use crate::sys::io::{self, from_raw, into_raw};
use crate::sys::lifeline::{end_for_children, hold_on};
use crate::sys::mutex::Mutex;
use crate::sys::poll::poll_one;
use crate::sys::process::{self, Sentinel, Started};
use crate::sys::spare;
use crate::sys::spawn::{
    Program, memory_file as new_memory_file, spawn as spawn_program, spawn_aside,
};
use crate::sys::template;

/// No process ends with this.
const RUNNING: i32 = i32::MIN;

/// The exit code of a child of the fork server that outlived the server (origin: billiard).
const UNREPORTED: i32 = 255;

/// What is held of a process while its sentinel is open.
struct Handle {
    sentinel: ManuallyDrop<Sentinel>,
    /// Of a child of the fork server: where its exit code will be reported. Others are reaped.
    reply: ManuallyDrop<Option<OwnedFd>>,
    /// (device, inode) of the sentinel: programs that become daemons close descriptors that are not
    /// theirs, and its number may be another's then. Before Linux 6.9 all pidfds had the same.
    file: Option<(u64, u64)>,
}

impl Handle {
    fn new(sentinel: Sentinel, reply: Option<OwnedFd>) -> Self {
        Self {
            file: io::identity(sentinel.fd()).ok(),
            sentinel: ManuallyDrop::new(sentinel),
            reply: ManuallyDrop::new(reply),
        }
    }

    fn is_ours(&self) -> bool {
        self.file.is_some() && self.file == io::identity(self.sentinel.fd()).ok()
    }

    /// Whether the sentinel is a pipe, which somebody else may hold open or close early.
    fn is_pipe_of_child(&self) -> bool {
        matches!((&*self.sentinel, &*self.reply), (Sentinel::Pipe(_), None))
    }
}

impl Drop for Handle {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        if self.is_ours() {
            // SAFETY: dropped here and nowhere else, and not used after.
            unsafe {
                ManuallyDrop::drop(&mut self.sentinel);
                ManuallyDrop::drop(&mut self.reply);
            }
        }
    }
}

/// A process that this one started, or had started by the fork server. Process-local: a forked
/// child that inherits it can neither reap nor wait for the process, but may signal it.
///
/// The exit code is taken once, with the GIL held; every thread that asks later gets the same
/// answer. If other code reaps the process first, its exit code stays unknown.
#[pyclass(frozen, module = "billiard._core")]
pub(super) struct Child {
    pid: libc::pid_t,
    /// `RUNNING` until the process has been reaped.
    exit_code: AtomicI32,
    /// `None` once closed. Locked only with the GIL held and never across a call that could give
    /// it back, so that no fork finds it locked. Shared, because a thread may wait on it while
    /// another closes it.
    handle: Mutex<Option<Arc<Handle>>>,
}

impl Child {
    pub(super) fn new(started: Started, reply: Option<OwnedFd>) -> Self {
        Self {
            pid: started.pid,
            exit_code: AtomicI32::new(RUNNING),
            handle: Mutex::new(Some(Arc::new(Handle::new(started.sentinel, reply)))),
        }
    }

    fn known_exit_code(&self) -> Option<i32> {
        match self.exit_code.load(Ordering::Relaxed) {
            RUNNING => None,
            code => Some(code),
        }
    }

    /// `None` once closed. If the program has closed it behind our back, the sentinel of a child
    /// that has not been reaped is opened again.
    fn handle(&self) -> Option<Arc<Handle>> {
        let mut slot = self.handle.lock();
        if let Some(handle) = &*slot
            && !handle.is_ours()
        {
            let again = handle.reply.is_none() && process::is_unreaped_child(self.pid);
            *slot = if again {
                let sentinel = process::sentinel_of(self.pid).ok();
                sentinel.map(|sentinel| Arc::new(Handle::new(sentinel, None)))
            } else {
                None
            };
        }
        slot.clone()
    }

    /// Takes the exit code if the process has ended.
    fn reap(&self, py: Python<'_>, handle: Option<&Handle>) -> PyResult<Option<i32>> {
        if self.known_exit_code().is_some() {
            return Ok(self.known_exit_code());
        }
        let code = match handle {
            Some(handle) if let Some(reply) = &*handle.reply => {
                self.reported_exit_code(py, &handle.sentinel, reply)?
            }
            _ => match process::reap(self.pid, handle.map(|handle| &*handle.sentinel)) {
                Err(Errno::ECHILD) => None,
                other => other.map_err(os_error)?,
            },
        };
        if let Some(code) = code {
            self.exit_code.store(code, Ordering::Relaxed);
        }
        Ok(self.known_exit_code())
    }

    /// What the fork server says. It is told of the death by the kernel as we are, so its report
    /// is at most a moment away.
    fn reported_exit_code(
        &self,
        py: Python<'_>,
        sentinel: &Sentinel,
        reply: &OwnedFd,
    ) -> PyResult<Option<i32>> {
        if !sentinel.wait(Some(Duration::ZERO)).map_err(os_error)? {
            return Ok(None);
        }
        let reply = reply.as_raw_fd();
        block_on(py, Deadline::Never, |left| poll_one(reply, left))?;
        // Another thread may have been faster; it has left the code where ours belongs.
        if self.known_exit_code().is_some() {
            return Ok(None);
        }
        match template::reported_exit_code(reply) {
            Err(Errno::ECONNRESET) => Ok(Some(UNREPORTED)),
            other => other.map_err(os_error),
        }
    }

    /// Waits for a child of this process without its sentinel.
    fn block_until_dead(&self, py: Python<'_>) -> PyResult<()> {
        let pid = self.pid;
        block_on(py, Deadline::Never, |_| {
            match process::block_until_dead(pid) {
                Err(Errno::ECHILD) => Ok(()),
                other => other,
            }
        })
    }
}

#[pymethods]
impl Child {
    #[getter]
    fn pid(&self) -> i32 {
        self.pid
    }

    /// The descriptor that becomes readable when the process ends; None once closed.
    #[getter]
    fn sentinel(&self) -> Option<RawFd> {
        self.handle().map(|handle| handle.sentinel.fd())
    }

    /// The exit code if the process has ended, else None.
    fn poll(&self, py: Python<'_>) -> PyResult<Option<i32>> {
        self.reap(py, self.handle().as_deref())
    }

    /// Waits until the process has ended, at most `timeout` seconds; returns what `poll` does.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<i32>> {
        let deadline = Deadline::after(timeout)?;
        let handle = self.handle();
        let code = self.reap(py, handle.as_deref())?;
        if code.is_some() || deadline.passed() {
            return Ok(code);
        }
        match handle.as_deref() {
            None if timeout.is_some() => {
                let text = "cannot wait with a timeout: the sentinel is closed";
                return Err(PyValueError::new_err(text));
            }
            None => self.block_until_dead(py)?,
            // A grandchild may hold the pipe open: only a timeout has to rely on it.
            Some(handle) if handle.is_pipe_of_child() && timeout.is_none() => {
                self.block_until_dead(py)?;
            }
            Some(handle) => {
                let ended = block_on(py, deadline, |left| handle.sentinel.wait(left))?;
                if ended && handle.is_pipe_of_child() {
                    // It is closed a moment before the process can be reaped.
                    self.block_until_dead(py)?;
                }
            }
        }
        self.reap(py, handle.as_deref())
    }

    /// Sends `signal`; nothing happens if the process has ended.
    fn send_signal(&self, signal: i32) -> PyResult<()> {
        if self.known_exit_code().is_some() {
            return Ok(());
        }
        let handle = self.handle();
        let sentinel = handle.as_deref().map(|handle| &*handle.sentinel);
        match process::send_signal(self.pid, sentinel, signal) {
            Err(errno) if errno != Errno::ESRCH => Err(os_error(errno)),
            _ => Ok(()),
        }
    }

    /// The sentinel, or, if that is closed, another descriptor that is as readable as it was.
    fn reopen(&self) -> PyResult<RawFd> {
        if let Some(handle) = self.handle() {
            return Ok(handle.sentinel.fd());
        }
        let sentinel = process::ended().map_err(os_error)?;
        let fd = sentinel.fd();
        *self.handle.lock() = Some(Arc::new(Handle::new(sentinel, None)));
        Ok(fd)
    }

    /// Closes the sentinel. The exit code, if it is known, stays known.
    fn close(&self) {
        let handle = self.handle.lock().take();
        drop(handle);
    }
}

/// Starts the program `path` with the arguments `args` (the first is its name) and the descriptors
/// `fds` beside 0, 1 and 2. OSError if it cannot be started.
#[pyfunction]
fn spawn(py: Python<'_>, path: Vec<u8>, args: Vec<Vec<u8>>, fds: Vec<RawFd>) -> PyResult<Child> {
    let program = program(path, args, fds)?;
    let name = program.path.to_string_lossy().into_owned();
    py.detach(|| spawn_program(program))
        .map(|started| Child::new(started, None))
        .map_err(|errno| os_error_with_filename(errno, &name))
}

fn program(path: Vec<u8>, args: Vec<Vec<u8>>, fds: Vec<RawFd>) -> PyResult<Program> {
    let text = |bytes| CString::new(bytes).map_err(|_| PyValueError::new_err("embedded null byte"));
    if args.is_empty() {
        return Err(PyValueError::new_err(
            "a program needs at least its name as an argument",
        ));
    }
    Ok(Program {
        path: text(path)?,
        argv: args.into_iter().map(text).collect::<PyResult<_>>()?,
        fds,
        mask: None,
    })
}

/// A program that is being started, by a thread that does nothing else. Process-local: a forked
/// child, which has no such thread, cannot use it.
#[pyclass(frozen, module = "billiard._core")]
struct Starting {
    /// `None` once the child has been taken. Locked for an instant, with the GIL.
    thread: Mutex<Option<JoinHandle<nix::Result<Started>>>>,
    name: String,
    /// Of the process that has the thread.
    owner: u32,
}

#[pymethods]
impl Starting {
    /// As `spawn`, but returns at once, and takes the descriptors `fds` over.
    #[new]
    fn new(path: Vec<u8>, args: Vec<Vec<u8>>, fds: Vec<RawFd>) -> PyResult<Self> {
        let kept = take_over(&fds);
        let program = program(path, args, fds)?;
        let name = program.path.to_string_lossy().into_owned();
        let thread = spawn_aside(program, kept).map_err(|error| {
            os_error(error.raw_os_error().map_or(Errno::EAGAIN, Errno::from_raw))
        })?;
        Ok(Self {
            thread: Mutex::new(Some(thread)),
            name,
            owner: pid(),
        })
    }

    /// The child, as soon as it exists; once. OSError if it could not be started.
    fn child(&self, py: Python<'_>) -> PyResult<Child> {
        let thread = (self.owner == pid())
            .then(|| self.thread.lock().take())
            .flatten();
        let Some(thread) = thread else {
            return Err(PyValueError::new_err("the child has been taken"));
        };
        match py.detach(|| thread.join()) {
            Ok(Ok(started)) => Ok(Child::new(started, None)),
            Ok(Err(errno)) => Err(os_error_with_filename(errno, &self.name)),
            Err(_) => Err(PyRuntimeError::new_err(
                "the thread that starts it has failed",
            )),
        }
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        if self.owner != pid() {
            // The thread is the parent's, and its handle means nothing here.
            std::mem::forget(self.thread.get_mut().take());
        }
    }
}

#[allow(unsafe_code)]
fn take_over(fds: &[RawFd]) -> Vec<OwnedFd> {
    // SAFETY: the caller gives them away, as the documentation says.
    fds.iter().map(|fd| unsafe { from_raw(*fd) }).collect()
}

/// A descriptor to read `data` from: a file in memory, without a name.
#[pyfunction]
fn memory_file(data: &[u8]) -> PyResult<RawFd> {
    new_memory_file(data).map(into_raw).map_err(os_error)
}

/// A descriptor that becomes readable when a process that is no child of this one ends: the one
/// that has the number `pid` and started at `start`, or, without a start, our parent. Readable at
/// once if it is gone. OSError where the kernel cannot do this.
#[pyfunction]
#[pyo3(signature = (pid, start=None))]
fn watch_process(pid: i32, start: Option<u64>) -> PyResult<RawFd> {
    let sentinel = process::watch(pid, start).map_err(os_error)?;
    Ok(into_raw(sentinel.into_fd()))
}

/// When process `pid` started, in clock ticks since the machine did; None if there is none.
#[pyfunction]
fn process_start_time(pid: i32) -> Option<u64> {
    process::start_time(pid)
}

/// The descriptor by which children of this process hold on to it; see `hold_lifeline`. It stays
/// open.
#[pyfunction]
fn lifeline() -> PyResult<RawFd> {
    end_for_children().map_err(os_error)
}

/// Has the kernel kill this process when the process that `lifeline` gave `fd` in is gone.
#[pyfunction]
fn hold_lifeline(fd: RawFd) -> PyResult<()> {
    hold_on(fd).map_err(os_error)
}

/// Hands a start over to a spare interpreter: `message` to read, `fds` under their own numbers.
#[pyfunction]
fn hand_over(py: Python<'_>, spare: RawFd, message: RawFd, fds: Vec<RawFd>) -> PyResult<()> {
    block_on(py, Deadline::Never, |_| {
        spare::hand_over(spare, message, &fds)
    })
}

/// Waits for a start to be handed over: returns the descriptor of the message; None if nobody is
/// left who could. Closes `socket`.
#[pyfunction]
fn wait_for_start(py: Python<'_>, socket: RawFd) -> PyResult<Option<RawFd>> {
    let message = block_on(py, Deadline::Never, |_| spare::wait_for(socket))?;
    Ok(message.map(into_raw))
}

/// What file a descriptor is of: device and inode. OSError if it is not open.
#[pyfunction]
fn file_identity(fd: RawFd) -> PyResult<(u64, u64)> {
    crate::sys::io::identity(fd).map_err(os_error)
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Child>()?;
    module.add_class::<Starting>()?;
    module.add_function(wrap_pyfunction!(spawn, module)?)?;
    module.add_function(wrap_pyfunction!(memory_file, module)?)?;
    module.add_function(wrap_pyfunction!(hand_over, module)?)?;
    module.add_function(wrap_pyfunction!(wait_for_start, module)?)?;
    module.add_function(wrap_pyfunction!(file_identity, module)?)?;
    module.add_function(wrap_pyfunction!(watch_process, module)?)?;
    module.add_function(wrap_pyfunction!(process_start_time, module)?)?;
    module.add_function(wrap_pyfunction!(lifeline, module)?)?;
    module.add_function(wrap_pyfunction!(hold_lifeline, module)?)?;
    Ok(())
}
