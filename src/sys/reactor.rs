//! What the engine thread waits for and how it acts on workers: epoll, eventfd, pidfds.
//!
//! Process-local. A forked child inherits the descriptors and does not use them.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// A counter that another process may bump to wake whoever polls it.
pub fn new_eventfd() -> nix::Result<OwnedFd> {
    let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
    Ok(event.into())
}

/// Wakes the poller of an eventfd. Cannot fail in a way that matters: a full counter wakes, too.
pub fn kick(fd: BorrowedFd<'_>) {
    let _ = nix::unistd::write(fd, &1u64.to_ne_bytes());
}

/// A descriptor of the process, readable once it has ended.
pub fn pidfd_open(pid: i32) -> nix::Result<OwnedFd> {
    // SAFETY: no pointers; a valid result is a descriptor that nobody else owns.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })? as RawFd;
    // SAFETY: fresh from the kernel.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Signals exactly the process behind the descriptor, never one that got its number later.
pub fn pidfd_signal(fd: BorrowedFd<'_>, signal: i32) -> nix::Result<()> {
    // SAFETY: a null siginfo asks the kernel to fill it as kill() does.
    let done = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            fd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    Errno::result(done).map(drop)
}

/// Signals the whole group of `pid` if it leads one; false when it does not.
pub fn signal_group(pid: i32, signal: i32) -> bool {
    // SAFETY: no pointers.
    if pid <= 0 || unsafe { libc::getpgid(pid) } != pid {
        return false;
    }
    // SAFETY: no pointers.
    unsafe { libc::killpg(pid, signal) == 0 }
}

/// Has the process behind the descriptor ended? Works for processes that are not our children.
pub fn has_ended(fd: BorrowedFd<'_>) -> bool {
    let mut poll = [nix::poll::PollFd::new(fd, nix::poll::PollFlags::POLLIN)];
    matches!(nix::poll::poll(&mut poll, nix::poll::PollTimeout::ZERO), Ok(n) if n > 0)
}

/// Waits for the end of the process behind the descriptor, for ever; false if that cannot be done.
pub fn wait_for_end(fd: BorrowedFd<'_>) -> bool {
    loop {
        let mut poll = [nix::poll::PollFd::new(fd, nix::poll::PollFlags::POLLIN)];
        match nix::poll::poll(&mut poll, nix::poll::PollTimeout::NONE) {
            Ok(_) => return true,
            Err(Errno::EINTR) => {}
            Err(_) => return false,
        }
    }
}

/// Ends this process at once: no handlers, no flushing, no other thread asked.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit takes any status and does not return.
    unsafe { libc::_exit(status) }
}

/// Blocks every signal in the calling thread, so that handlers run in threads that expect them.
pub fn block_signals() {
    let _ = nix::sys::signal::SigSet::all().thread_block();
}

/// Seconds of CLOCK_MONOTONIC, which all processes of the system share.
pub fn monotonic() -> f64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    now.map_or(0.0, |t| t.tv_sec() as f64 + t.tv_nsec() as f64 * 1e-9)
}

/// Current resident memory of this process in bytes (not its peak).
pub fn resident_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split(' ').nth(1)?.parse().ok()?;
    // SAFETY: no pointers.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    Some(pages * page as u64)
}

/// epoll with a number per descriptor.
#[derive(Debug)]
pub struct Reactor {
    epoll: Epoll,
}

impl Reactor {
    pub fn new() -> nix::Result<Self> {
        Ok(Self {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
        })
    }

    /// Watches `fd` for being readable under the number `token`.
    pub fn add(&self, fd: impl AsFd, token: u64) -> nix::Result<()> {
        self.epoll
            .add(fd, EpollEvent::new(EpollFlags::EPOLLIN, token))
    }

    pub fn remove(&self, fd: impl AsFd) {
        let _ = self.epoll.delete(fd);
    }

    /// The tokens that became readable, at most 32; none after `timeout` (`None`: for ever).
    pub fn wait(&self, timeout: Option<Duration>) -> Vec<u64> {
        // Rounded up: a timer that fires early would find nothing to do and spin.
        let limit = match timeout {
            None => EpollTimeout::NONE,
            Some(t) => {
                let ms = t.as_micros().div_ceil(1000).min(i32::MAX as u128) as i32;
                EpollTimeout::try_from(ms).unwrap_or(EpollTimeout::ZERO)
            }
        };
        let mut events = [EpollEvent::empty(); 32];
        let count = self.epoll.wait(&mut events, limit).unwrap_or(0);
        events[..count].iter().map(EpollEvent::data).collect()
    }
}
