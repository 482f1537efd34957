//! Children of this process: making them by fork, waiting for them, signalling them.
//!
//! ```text
//!              fork / spawn                      reap (once)
//!   nothing ─────────────────► running ──► zombie ───────────► gone
//!                                 └── the sentinel becomes readable
//! ```
//!
//! The sentinel is a pidfd, or, where the kernel has none, the read end of a pipe whose other end
//! only the child holds.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;

use super::io::pipe;
use super::pidfd;
use super::poll::{Readiness, poll_one};

/// What becomes readable when a child ends. Process-local; a forked child holds copies of its
/// parent's, which it cannot reap with.
#[derive(Debug)]
pub enum Sentinel {
    Pidfd(OwnedFd),
    Pipe(OwnedFd),
}

impl Sentinel {
    pub fn fd(&self) -> RawFd {
        match self {
            Self::Pidfd(fd) | Self::Pipe(fd) => fd.as_raw_fd(),
        }
    }

    pub fn into_fd(self) -> OwnedFd {
        match self {
            Self::Pidfd(fd) | Self::Pipe(fd) => fd,
        }
    }

    /// Waits until the sentinel is readable; false when `timeout` passed first (`None`: never).
    pub fn wait(&self, timeout: Option<Duration>) -> nix::Result<bool> {
        Ok(poll_one(self.fd(), timeout)? != Readiness::Quiet)
    }
}

/// A child that was just made.
#[derive(Debug)]
pub struct Started {
    pub pid: libc::pid_t,
    pub sentinel: Sentinel,
}

/// `fork(2)`: the child's number, or 0 in the child. The caller runs the interpreter's hooks.
pub fn fork() -> nix::Result<libc::pid_t> {
    // SAFETY: the C library's fork keeps its own locks and allocator usable in the child, and the
    // core's types are written for being copied (see the crate's documentation).
    Errno::result(unsafe { libc::fork() })
}

/// The descriptors of a fork that is about to happen, taken first so that running out of them is
/// found out while there is still no child.
#[derive(Debug)]
pub enum ForkPlan {
    /// Keeps a number free for the pidfd.
    Pidfd {
        reserved: OwnedFd,
    },
    Pipe {
        reader: OwnedFd,
        writer: OwnedFd,
    },
}

impl ForkPlan {
    pub fn new() -> nix::Result<Self> {
        if pidfd::supported() {
            return Ok(Self::Pidfd {
                reserved: reserve()?,
            });
        }
        let (reader, writer) = pipe((false, false))?;
        Ok(Self::Pipe { reader, writer })
    }

    /// In the child.
    pub fn in_child(self) {
        if let Self::Pipe { writer, .. } = self {
            // Stays open until the process ends: that is what the parent waits for.
            std::mem::forget(writer);
        }
    }

    /// In the parent, with what `fork` returned.
    pub fn in_parent(self, pid: libc::pid_t) -> nix::Result<Started> {
        let sentinel = match self {
            Self::Pidfd { reserved } => {
                drop(reserved);
                sentinel_of(pid).inspect_err(|_| abandon(pid))?
            }
            Self::Pipe { reader, .. } => Sentinel::Pipe(reader),
        };
        Ok(Started { pid, sentinel })
    }
}

/// Any descriptor, to be closed when its number is needed.
fn reserve() -> nix::Result<OwnedFd> {
    // SAFETY: eventfd takes two integers.
    let fd = Errno::result(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) })?;
    // SAFETY: the kernel has just made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The pidfd of a child of ours.
pub fn sentinel_of(pid: libc::pid_t) -> nix::Result<Sentinel> {
    match pidfd::open(pid) {
        Ok(fd) => Ok(Sentinel::Pidfd(fd)),
        // A SIGCHLD handler of the program has reaped it already: a pipe that is at its end.
        Err(Errno::ESRCH) => ended(),
        Err(errno) => Err(errno),
    }
}

/// When process `pid` started, in clock ticks since the machine did: with the number it names one
/// process. `None` if there is none.
pub fn start_time(pid: libc::pid_t) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field, the command in parentheses, may hold anything; the 22nd is wanted.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// A sentinel for a process that is not our child: it is `pid` if that started at `start`, or,
/// without a `start`, if it is our parent. At its end at once if it is not.
pub fn watch(pid: libc::pid_t, start: Option<u64>) -> nix::Result<Sentinel> {
    let sentinel = sentinel_of(pid)?;
    // Looked at after the descriptor was opened: what is still there now was there then.
    let same = match start {
        Some(start) => start_time(pid) == Some(start),
        None => nix::unistd::getppid().as_raw() == pid,
    };
    if same { Ok(sentinel) } else { ended() }
}

/// A sentinel of no process: it is at its end.
pub fn ended() -> nix::Result<Sentinel> {
    pipe((false, false)).map(|(reader, _)| Sentinel::Pipe(reader))
}

/// Ends and reaps a child that nobody will ever hear of.
pub fn abandon(pid: libc::pid_t) {
    // SAFETY: `pid` is a child of ours that has not been reaped.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    while block_until_dead(pid) == Err(Errno::EINTR) {}
    let _ = reap(pid, None);
}

/// How a child ended: its exit status, or the negative number of the signal that killed it.
pub type ExitCode = i32;

/// Takes the exit code of a child that has ended; `None` while it runs.
///
/// `ECHILD` if it is not a child of this process, or was reaped by somebody else.
pub fn reap(pid: libc::pid_t, sentinel: Option<&Sentinel>) -> nix::Result<Option<ExitCode>> {
    let (kind, id) = match sentinel {
        Some(Sentinel::Pidfd(fd)) => (libc::P_PIDFD, fd.as_raw_fd()),
        _ => (libc::P_PID, pid),
    };
    Ok(wait_id(kind, id, libc::WEXITED | libc::WNOHANG)?.map(|(_, code)| code))
}

/// Whether `pid` is a child of this process that nobody has reaped: then it is no other's number.
pub fn is_unreaped_child(pid: libc::pid_t) -> bool {
    wait_id(
        libc::P_PID,
        pid,
        libc::WEXITED | libc::WNOHANG | libc::WNOWAIT,
    )
    .is_ok()
}

/// Waits until child `pid` has ended, and leaves it to be reaped.
pub fn block_until_dead(pid: libc::pid_t) -> nix::Result<()> {
    wait_id(libc::P_PID, pid, libc::WEXITED | libc::WNOWAIT).map(drop)
}

/// Takes the exit code of any child that has ended, with its number.
pub fn reap_any() -> nix::Result<Option<(libc::pid_t, ExitCode)>> {
    wait_id(libc::P_ALL, 0, libc::WEXITED | libc::WNOHANG)
}

fn wait_id(
    kind: libc::idtype_t,
    id: i32,
    options: i32,
) -> nix::Result<Option<(libc::pid_t, ExitCode)>> {
    // SAFETY: an all-zero siginfo_t is valid; its zero pid stands for "still running".
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `info` is writable; the other arguments are integers.
    Errno::result(unsafe { libc::waitid(kind, id as libc::id_t, &raw mut info, options) })?;
    // SAFETY: waitid has filled in the fields for a child, or left them zero.
    let (found, status) = unsafe { (info.si_pid(), info.si_status()) };
    if found == 0 {
        return Ok(None);
    }
    let code = if info.si_code == libc::CLD_EXITED {
        status
    } else {
        -status
    };
    Ok(Some((found, code)))
}

/// Sends `signal`, race-free if the sentinel is a pidfd.
///
/// Without one the caller must know that the child has not been reaped.
pub fn send_signal(pid: libc::pid_t, sentinel: Option<&Sentinel>, signal: i32) -> nix::Result<()> {
    if let Some(Sentinel::Pidfd(fd)) = sentinel {
        return pidfd::send_signal(fd.as_raw_fd(), signal);
    }
    // SAFETY: kill takes two integers.
    Errno::result(unsafe { libc::kill(pid, signal) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Forks; the child ends as told. Only system calls in the child: other tests have threads.
    fn child(end: fn()) -> Started {
        let plan = ForkPlan::new().unwrap();
        match fork().unwrap() {
            0 => {
                end();
                // SAFETY: leaves at once.
                unsafe { libc::_exit(5) }
            }
            pid => plan.in_parent(pid).unwrap(),
        }
    }

    fn wait(started: &Started) -> Option<ExitCode> {
        assert!(started.sentinel.wait(None).unwrap());
        reap(started.pid, Some(&started.sentinel)).unwrap()
    }

    #[test]
    fn exit_status_and_signal_are_told_apart() {
        assert_eq!(wait(&child(|| {})), Some(5));
        // SAFETY: ends the child.
        let killed = child(|| unsafe { _ = libc::raise(libc::SIGKILL) });
        assert_eq!(wait(&killed), Some(-libc::SIGKILL));
    }

    #[test]
    fn a_process_is_known_by_its_number_and_its_start() {
        let pid = std::process::id() as libc::pid_t;
        let start = start_time(pid).unwrap();
        let quiet = Ok(false);
        let now = Some(Duration::ZERO);
        assert_eq!(watch(pid, Some(start)).unwrap().wait(now), quiet);
        assert_eq!(watch(pid, Some(start + 1)).unwrap().wait(now), Ok(true));
        assert_eq!(watch(pid, None).unwrap().wait(now), Ok(true));
        let parent = nix::unistd::getppid().as_raw();
        assert_eq!(watch(parent, None).unwrap().wait(now), quiet);
    }

    #[test]
    fn a_running_child_has_no_exit_code_and_takes_signals() {
        // SAFETY: waits for a signal.
        let started = child(|| unsafe { _ = libc::pause() });
        let sentinel = Some(&started.sentinel);
        assert_eq!(reap(started.pid, sentinel), Ok(None));
        assert_eq!(started.sentinel.wait(Some(Duration::ZERO)), Ok(false));
        send_signal(started.pid, sentinel, libc::SIGTERM).unwrap();
        assert_eq!(wait(&started), Some(-libc::SIGTERM));
        assert_eq!(reap(started.pid, sentinel), Err(Errno::ECHILD));
        assert_eq!(send_signal(started.pid, sentinel, 0), Err(Errno::ESRCH));
    }
}
