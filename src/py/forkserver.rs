//! The fork server: under `billiard/forkserver.py` and `popen_forkserver.py`.

use std::os::fd::{OwnedFd, RawFd};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::block::{Deadline, block_on};
use super::error::os_error;
use super::fork::fork_with_hooks;
use super::process::Child;
use crate::sys::io::into_raw;
use crate::sys::mutex::Mutex;
use crate::sys::process::fork;
use crate::sys::template::{self, Template, packet_pair};

/// The most descriptors that a request can carry for its child.
const MAX_REQUEST_FDS: usize = crate::sys::fdpass::MAX_FDS - 1;

/// The two ends of a new server's request socket: the clients', the template's.
#[pyfunction]
fn request_sockets() -> PyResult<(RawFd, RawFd)> {
    let (clients, template) = packet_pair().map_err(os_error)?;
    Ok((into_raw(clients), into_raw(template)))
}

/// Serves forks until all clients have gone: returns None then, and in each child the descriptors
/// that came with its request. `requests` is closed in the child.
#[pyfunction]
fn serve_forks(py: Python<'_>, requests: RawFd) -> PyResult<Option<Vec<RawFd>>> {
    let mut server = Template::new(requests).map_err(os_error)?;
    loop {
        let Some(request) = block_on(py, Deadline::Never, |_| server.next_request())? else {
            return Ok(None);
        };
        match fork_with_hooks(py, fork, || ()) {
            Ok(0) => {
                let fds = server.become_child(request).map_err(os_error)?;
                return Ok(Some(fds.into_iter().map(into_raw).collect()));
            }
            Ok(pid) => server.forked(request, pid),
            Err(errno) => Template::failed(&request, errno),
        }
    }
}

/// A child that a fork server was asked for. Process-local; a forked child that inherits it must
/// not use it: the reply is its parent's.
#[pyclass(frozen, module = "billiard._core")]
struct ForkRequest {
    /// `None` once the reply has been taken. Locked for an instant, with the GIL.
    reply: Mutex<Option<OwnedFd>>,
}

impl ForkRequest {
    fn take(&self) -> PyResult<OwnedFd> {
        let taken = self.reply.lock().take();
        taken.ok_or_else(|| PyValueError::new_err("the reply to this request has been taken"))
    }
}

#[pymethods]
impl ForkRequest {
    /// Asks the server behind the socket `template` for a child that gets `fds`. A ConnectionError
    /// if the server has died.
    #[new]
    fn new(py: Python<'_>, template: RawFd, fds: Vec<RawFd>) -> PyResult<Self> {
        let reply = block_on(py, Deadline::Never, |_| template::request(template, &fds))?;
        Ok(Self {
            reply: Mutex::new(Some(reply)),
        })
    }

    /// The child, as soon as it runs. ConnectionResetError if the server died before it forked;
    /// OSError if the fork failed.
    fn child(&self, py: Python<'_>) -> PyResult<Child> {
        let reply = self.take()?;
        let started = block_on(py, Deadline::Never, |_| template::forked_child(&reply))?;
        Ok(Child::new(started, Some(reply)))
    }

    /// The descriptor that the replies come over, which is the caller's from now on.
    fn detach(&self) -> PyResult<RawFd> {
        self.take().map(into_raw)
    }
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("MAX_REQUEST_FDS", MAX_REQUEST_FDS)?;
    module.add_class::<ForkRequest>()?;
    module.add_function(wrap_pyfunction!(request_sockets, module)?)?;
    module.add_function(wrap_pyfunction!(serve_forks, module)?)?;
    Ok(())
}
