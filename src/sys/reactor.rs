//! What the engine thread waits for and how it acts on workers: epoll, eventfd, pidfds.
//!
//! Process-local. A forked child inherits the descriptors and does not use them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

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

/// Makes a kicked eventfd quiet again.
pub fn calm(fd: BorrowedFd<'_>) {
    let _ = nix::unistd::read(fd, &mut [0; 8]);
}

/// A descriptor that stays open as long as the process lives, to be written to.
pub fn borrow(fd: RawFd) -> BorrowedFd<'static> {
    assert!(fd >= 0);
    // SAFETY: it is not -1; nothing is done to what it turns out to be but a write that fails or
    // wakes somebody.
    unsafe { BorrowedFd::borrow_raw(fd) }
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

/// Blocks every signal in the calling thread, so that handlers run in threads that expect them.
pub fn block_signals() {
    let _ = nix::sys::signal::SigSet::all().thread_block();
}

/// Memory of this process in bytes, at the moment (not its peak), without what it shares with other
/// processes in segments.
pub fn resident_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let kib = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    };
    Some((kib("RssAnon:")? + kib("RssFile:")?) * 1024)
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
