//! A descriptor that can be closed while others may be about to use it.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;

use super::mutex::Mutex;

/// Closed early, or with the last that uses it. Process-local. The mutex is held for an instant; a
/// forked child has a copy, which it may [close](Self::close) and not use.
#[derive(Debug)]
pub struct Descriptor {
    raw: RawFd,
    open: Mutex<Option<Arc<OwnedFd>>>,
}

impl Descriptor {
    pub fn new(fd: OwnedFd) -> Self {
        Self {
            raw: fd.as_raw_fd(),
            open: Mutex::new(Some(Arc::new(fd))),
        }
    }

    /// To be used and let go of; `EBADF` once it is closed.
    pub fn get(&self) -> nix::Result<Arc<OwnedFd>> {
        self.open.lock().clone().ok_or(Errno::EBADF)
    }

    /// Its number, as long as it is open.
    pub fn raw(&self) -> RawFd {
        self.raw
    }

    /// Closes it when nobody uses it any more.
    pub fn close(&self) {
        // A thread that a forked child does not have may have the lock: then it stays open there.
        for _ in 0..10 {
            if let Some(mut open) = self.open.try_lock() {
                open.take();
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn it_stays_open_for_who_uses_it() {
        let descriptor = Descriptor::new(File::open("/dev/null").unwrap().into());
        let used = descriptor.get().unwrap();
        descriptor.close();
        assert_eq!(descriptor.get().unwrap_err(), Errno::EBADF);
        assert!(nix::fcntl::fcntl(&*used, nix::fcntl::FcntlArg::F_GETFD).is_ok());
    }
}
