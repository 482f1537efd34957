//! Processes as descriptors (Linux 5.4 and newer).
//!
//! A pidfd names one process for as long as it is open: it becomes readable when the process ends,
//! and a signal sent through it can never reach a later process that got the same number. Old
//! kernels and strict seccomp filters do not have it; that is found out once per process.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU8, Ordering};

use nix::errno::Errno;

const UNKNOWN: u8 = 0;
const MISSING: u8 = 1;
const PRESENT: u8 = 2;

/// Process-local; a forked child inherits the answer, which holds for it too.
static STATE: AtomicU8 = AtomicU8::new(UNKNOWN);

/// Whether the kernel lets us open, wait for and signal processes by descriptor.
pub fn supported() -> bool {
    match STATE.load(Ordering::Relaxed) {
        UNKNOWN => {
            let found = probe();
            if let Some(found) = found {
                STATE.store(if found { PRESENT } else { MISSING }, Ordering::Relaxed);
            }
            found.unwrap_or(true)
        }
        state => state == PRESENT,
    }
}

/// `None`: cannot tell now (no descriptor was free).
fn probe() -> Option<bool> {
    let own = match open(std::process::id() as libc::pid_t) {
        Ok(own) => own,
        Err(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM) => return None,
        Err(_) => return Some(false),
    };
    // SAFETY: an all-zero siginfo_t is valid, and the kernel may write into this one.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open and `info` is writable. Nobody is their own child: ECHILD.
    let waits = unsafe {
        libc::waitid(
            libc::P_PIDFD,
            own.as_raw_fd() as libc::id_t,
            &raw mut info,
            libc::WEXITED | libc::WNOHANG,
        )
    };
    let understood = waits == -1 && Errno::last() == Errno::ECHILD;
    Some(understood && send_signal(own.as_raw_fd(), 0).is_ok())
}

/// A close-on-exec descriptor for process `pid`. `ESRCH` if there is none of that number.
pub fn open(pid: libc::pid_t) -> nix::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    // SAFETY: the kernel has just made this descriptor for us alone.
    Errno::result(fd).map(|fd| unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Sends `signal` to the process of `pidfd`; 0 only checks. `ESRCH` once it has been reaped.
pub fn send_signal(pidfd: RawFd, signal: i32) -> nix::Result<()> {
    // SAFETY: no siginfo is given, so the system call touches no memory of ours.
    let done = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd,
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    Errno::result(done).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_agrees_with_itself() {
        assert_eq!(supported(), supported());
    }

    #[test]
    fn there_is_no_process_of_an_impossible_number() {
        if supported() {
            assert_eq!(open(libc::pid_t::MAX).map(drop), Err(Errno::ESRCH));
        }
    }
}
