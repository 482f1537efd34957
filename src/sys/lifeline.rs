//! Dying with a parent, whatever either of them is doing.
//!
//! ```text
//!  parent                          child
//!  writing end ─── pipe ──► reading end, opened anew, owner and signal set
//!     │ closed by the kernel          │
//!     └── when the parent is gone ────┴──► the kernel sends SIGKILL: no thread of ours has to
//!                                          run, no lock be free, no signal be unmasked
//! ```
//!
//! Unlike `PR_SET_PDEATHSIG` this follows the process and not the thread that forked, and it needs
//! no thread in the child, which would make every later fork there a fork with threads.
//!
//! Process-local. A forked child closes its copy of the writing end before anything else runs in
//! it, or it would keep its parent's other children alive.

use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use super::fork;
use super::io::pipe;
use super::poll::{Readiness, poll_one};

/// Both ends of this process's pipe as one word, 0 if there is none: reading end + 1 in the upper
/// half, writing end in the lower.
static LINE: AtomicU64 = AtomicU64::new(0);

/// The process that holds on to its parent's line: what a forked child inherits is not its own.
static HOLDS: AtomicU32 = AtomicU32::new(0);

fn pack(reader: RawFd, writer: RawFd) -> u64 {
    ((reader as u64 + 1) << 32) | writer as u64
}

fn unpack(line: u64) -> Option<(RawFd, RawFd)> {
    (line != 0).then(|| ((line >> 32) as RawFd - 1, line as u32 as RawFd))
}

/// The reading end of this process's pipe, for [`hold_on`] in a child. Stays open.
pub fn end_for_children() -> nix::Result<RawFd> {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| fork::on_fork(nothing, nothing, let_go));
    if let Some((reader, _)) = unpack(LINE.load(Ordering::Acquire)) {
        return Ok(reader);
    }
    let (reader, writer) = pipe((false, false))?;
    let line = pack(reader.as_raw_fd(), writer.as_raw_fd());
    match LINE.compare_exchange(0, line, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => {
            let _ = writer.into_raw_fd();
            Ok(reader.into_raw_fd())
        }
        // Another thread was faster; its line is as good.
        Err(line) => Ok(unpack(line).map_or(-1, |(reader, _)| reader)),
    }
}

extern "C" fn nothing() {}

/// In a forked child: the writing end is the parent's alone. The reading end stays for `hold_on`.
extern "C" fn let_go() {
    if let Some((_, writer)) = unpack(LINE.swap(0, Ordering::AcqRel)) {
        // SAFETY: this copy of the descriptor is known to nobody else in the child.
        drop(unsafe { OwnedFd::from_raw_fd(writer) });
    }
}

/// Has the kernel kill this process as soon as the one that made the pipe is gone.
///
/// `end` is what [`end_for_children`] gave there; it is the caller's to close. A process holds on to
/// one line; the second time nothing is done.
pub fn hold_on(end: RawFd) -> nix::Result<()> {
    if HOLDS.load(Ordering::Relaxed) == fork::pid() {
        return Ok(());
    }
    // Owner and signal belong to the open file, which the siblings share: this one is our own.
    let path = format!("/proc/self/fd/{end}");
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let own = open(path.as_str(), flags, Mode::empty())?.into_raw_fd();
    // SAFETY: `own` is an open pipe, and the arguments are integers.
    unsafe {
        Errno::result(libc::fcntl(own, libc::F_SETOWN, libc::getpid()))?;
        Errno::result(libc::fcntl(own, F_SETSIG, libc::SIGKILL))?;
        Errno::result(libc::fcntl(
            own,
            libc::F_SETFL,
            libc::O_ASYNC | libc::O_NONBLOCK,
        ))?;
    }
    // The end may have come before the kernel was told to watch for it.
    if poll_one(own, Some(std::time::Duration::ZERO))? != Readiness::Quiet {
        // SAFETY: leaves at once, as the signal would.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    }
    HOLDS.store(fork::pid(), Ordering::Relaxed);
    Ok(())
}

/// The signal that `O_ASYNC` sends, from the kernel's `fcntl.h`; the libc crate lacks it.
const F_SETSIG: libc::c_int = 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process::{self, ForkPlan};

    #[test]
    fn a_line_is_two_descriptors_in_a_word() {
        assert_eq!(unpack(0), None);
        assert_eq!(unpack(pack(0, 0)), Some((0, 0)));
        assert_eq!(unpack(pack(3, 7)), Some((3, 7)));
    }

    #[test]
    fn a_child_dies_when_the_line_is_cut() {
        let (reader, writer) = pipe((false, false)).unwrap();
        let (heard, told) = pipe((false, false)).unwrap();
        let plan = ForkPlan::new().unwrap();
        let pid = process::fork().unwrap();
        if pid == 0 {
            drop(writer);
            if hold_on(reader.as_raw_fd()).is_ok() {
                drop(told);
                // SAFETY: waits for the end.
                unsafe { libc::pause() };
            }
            // SAFETY: leaves at once.
            unsafe { libc::_exit(1) }
        }
        let child = plan.in_parent(pid).unwrap();
        drop(told);
        assert_ne!(poll_one(heard.as_raw_fd(), None), Ok(Readiness::Quiet));
        assert_eq!(
            child.sentinel.wait(Some(std::time::Duration::ZERO)),
            Ok(false)
        );
        drop(writer);
        assert_eq!(child.sentinel.wait(None), Ok(true));
        let code = process::reap(child.pid, Some(&child.sentinel));
        assert_eq!(code, Ok(Some(-libc::SIGKILL)));
    }
}
