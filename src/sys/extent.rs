//! Parts of a file in memory that are not mapped: written, read and given back by the kernel.
//!
//! For what is too big to keep mapped everywhere. Memory that runs out is an error here
//! (`ENOSPC`, `ENOMEM`), where a touched page of a mapping would be a SIGBUS.

use std::os::fd::{BorrowedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use super::io::{Source, Target};

/// Writes all of `source` at `offset`; the file grows if it has to.
pub fn write_at(fd: RawFd, mut offset: u64, mut source: Source<'_>) -> nix::Result<()> {
    while !source.is_empty() {
        let at = libc::off_t::try_from(offset).map_err(|_| Errno::EFBIG)?;
        // SAFETY: the source is readable for its length.
        let n = unsafe { libc::pwrite(fd, source.as_ptr().cast(), source.len(), at) };
        match Errno::result(n) {
            Ok(0) => return Err(Errno::ENOSPC),
            Ok(n) => {
                offset += n as u64;
                source = source.skip(n as usize);
            }
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Fills `target` with what is at `offset`; `EIO` if the file ends before.
pub fn read_at(fd: RawFd, mut offset: u64, mut target: Target<'_>) -> nix::Result<()> {
    while !target.is_empty() {
        let at = libc::off_t::try_from(offset).map_err(|_| Errno::EFBIG)?;
        // SAFETY: the target is writable for its length.
        let n = unsafe { libc::pread(fd, target.as_mut_ptr().cast(), target.len(), at) };
        match Errno::result(n) {
            Ok(0) => return Err(Errno::EIO),
            Ok(n) => {
                offset += n as u64;
                target.skip(n as usize);
            }
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Gives the memory of a range back to the system, as far as it can.
pub fn punch(fd: RawFd, offset: u64, len: u64) {
    // SAFETY: a descriptor that is not open is an error, which is ignored.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    if let (Ok(offset), Ok(len)) = (offset.try_into(), len.try_into()) {
        let _ = fallocate(fd, flags, offset, len);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use nix::sys::memfd::{MFdFlags, memfd_create};

    use super::*;

    #[test]
    fn what_is_written_is_read_until_it_is_given_back() {
        let fd = memfd_create(c"test", MFdFlags::MFD_CLOEXEC).unwrap();
        let raw = fd.as_raw_fd();
        write_at(raw, 1 << 33, Source::from(&b"far away"[..])).unwrap();
        let mut got = [0; 8];
        read_at(raw, 1 << 33, Target::from(&mut got[..])).unwrap();
        assert_eq!(&got, b"far away");
        punch(raw, 1 << 33, 4096);
        read_at(raw, 1 << 33, Target::from(&mut got[..])).unwrap();
        assert_eq!(got, [0; 8]);
        let end = read_at(raw, (1 << 33) + 8, Target::from(&mut got[..]));
        assert_eq!(end, Err(Errno::EIO));
    }
}
