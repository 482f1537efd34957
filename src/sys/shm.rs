//! Shared memory that has a name: what `/dev/shm` holds until somebody unlinks it.
//!
//! The segments are *process-shared* and outlive every process; the descriptors are process-local.
//! A name starts with a slash and has no other (`EINVAL`); it is POSIX's, so CPython's
//! `multiprocessing.shared_memory` sees the same segments.

use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag, fallocate};
use nix::sys::mman;
use nix::sys::stat::Mode;
use nix::unistd::ftruncate;

/// Opens the segment called `name`, or makes it, as `flags` of open(2) say; an empty one then.
/// The descriptor is close-on-exec.
pub fn open(name: &str, flags: i32, mode: u32) -> nix::Result<OwnedFd> {
    let flags = OFlag::from_bits_retain(flags) | OFlag::O_CLOEXEC;
    mman::shm_open(name, flags, Mode::from_bits_truncate(mode))
}

/// Removes the name. The memory goes when nobody has it open or mapped any more.
pub fn unlink(name: &str) -> nix::Result<()> {
    mman::shm_unlink(name)
}

/// Gives a new segment its size and its memory, all of it: `ENOSPC` now, where `ftruncate` alone
/// would let a process die of SIGBUS when it writes to what is not there.
pub fn allocate(fd: RawFd, size: i64) -> nix::Result<()> {
    if fd < 0 {
        return Err(Errno::EBADF);
    }
    // SAFETY: the number is not negative and is only used in this call; if it is no open
    // descriptor, the system says so.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    match fallocate(fd, FallocateFlags::empty(), 0, size) {
        // No memory file system, or an old one.
        Err(Errno::EOPNOTSUPP) => ftruncate(fd, size),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::os::fd::AsRawFd;

    use nix::sys::stat::fstat;

    fn create(name: &str) -> nix::Result<OwnedFd> {
        open(name, libc::O_CREAT | libc::O_EXCL | libc::O_RDWR, 0o600)
    }

    #[test]
    fn a_segment_is_found_by_its_name_until_it_is_unlinked() {
        let name = format!("/billiard-test-{}", std::process::id());
        let made = create(&name).unwrap();
        allocate(made.as_raw_fd(), 5000).unwrap();
        assert_eq!(create(&name).unwrap_err(), Errno::EEXIST);
        let found = open(&name, libc::O_RDWR, 0).unwrap();
        assert_eq!(fstat(&found).unwrap().st_size, 5000);
        unlink(&name).unwrap();
        assert_eq!(open(&name, libc::O_RDWR, 0).unwrap_err(), Errno::ENOENT);
        assert_eq!(unlink(&name).unwrap_err(), Errno::ENOENT);
    }

    #[test]
    fn more_than_there_is_is_refused() {
        let name = format!("/billiard-test-big-{}", std::process::id());
        let made = create(&name).unwrap();
        unlink(&name).unwrap();
        assert!(allocate(made.as_raw_fd(), 1 << 50).is_err());
    }
}
