//! Reading and writing descriptors, into and out of memory that Rust does not own.
//!
//! Every read and write exists twice: plain (waits if the descriptor is a blocking one) and
//! `_nowait` (never waits, whatever the descriptor's flags say; `EAGAIN` instead). The second is
//! what callers use while they hold the GIL.

use std::marker::PhantomData;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::stat::{Mode, stat};
use nix::unistd::pipe2;

use super::memory::PAGE;

/// Bytes to send: memory that stays allocated for `'a`, but that others may write to meanwhile
/// (a `bytearray` that another Python thread changes), so never a `&[u8]`.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    ptr: *const u8,
    len: usize,
    memory: PhantomData<&'a u8>,
}

/// Memory to receive into, allocated for `'a`; uninitialised or shared, so never a `&mut [u8]`.
#[derive(Debug)]
pub struct Target<'a> {
    ptr: *mut u8,
    len: usize,
    memory: PhantomData<&'a mut u8>,
}

// SAFETY: both are only an address and a length for the kernel; `'a` keeps the memory allocated,
// and no Rust reference into it is ever made.
unsafe impl Send for Source<'_> {}
// SAFETY: as above.
unsafe impl Sync for Source<'_> {}
// SAFETY: as above.
unsafe impl Send for Target<'_> {}
// SAFETY: as above.
unsafe impl Sync for Target<'_> {}

impl<'a> Source<'a> {
    pub(super) fn as_ptr(&self) -> *const u8 {
        self.ptr
    }

    /// # Safety
    /// `ptr` must be readable for `len` bytes during `'a`.
    pub unsafe fn from_raw(ptr: *const u8, len: usize) -> Self {
        Self {
            ptr,
            len,
            memory: PhantomData,
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What is left after the first `n` bytes.
    pub fn skip(self, n: usize) -> Self {
        let n = n.min(self.len);
        // SAFETY: `n` is within the memory, or one past its end.
        let ptr = unsafe { self.ptr.add(n) };
        Self {
            ptr,
            len: self.len - n,
            ..self
        }
    }

    /// The first `n` bytes alone.
    pub fn first(self, n: usize) -> Self {
        Self {
            len: n.min(self.len),
            ..self
        }
    }

    /// A copy of the bytes as they are now.
    pub fn to_vec(self) -> Vec<u8> {
        let mut copy = Vec::new();
        self.append_to(&mut copy);
        copy
    }

    /// Appends the bytes as they are now.
    pub fn append_to(self, copy: &mut Vec<u8>) {
        copy.reserve(self.len);
        let room = copy.spare_capacity_mut().as_mut_ptr().cast();
        // SAFETY: the source is readable for `len` bytes, the vector has room for as many, and they
        // cannot overlap because that room is nobody else's.
        unsafe {
            std::ptr::copy_nonoverlapping(self.ptr, room, self.len);
            copy.set_len(copy.len() + self.len);
        }
    }
}

impl<'a> From<&'a [u8]> for Source<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self {
            ptr: bytes.as_ptr(),
            len: bytes.len(),
            memory: PhantomData,
        }
    }
}

impl<'a> Target<'a> {
    pub(super) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.ptr
    }

    /// # Safety
    /// `ptr` must be writable for `len` bytes during `'a`.
    pub unsafe fn from_raw(ptr: *mut u8, len: usize) -> Self {
        Self {
            ptr,
            len,
            memory: PhantomData,
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Gives up the first `n` bytes: they are filled.
    pub fn skip(&mut self, n: usize) {
        let n = n.min(self.len);
        // SAFETY: `n` is within the memory, or one past its end.
        self.ptr = unsafe { self.ptr.add(n) };
        self.len -= n;
    }

    /// The first `n` bytes alone.
    pub fn first(self, n: usize) -> Self {
        Self {
            len: n.min(self.len),
            ..self
        }
    }

    /// Makes the pages of memory that is new, in one go and not one fault after the other: a fifth
    /// cheaper. Memory whose middle has a page is taken for one that was used before, which would
    /// gain nothing. Kernels before 5.14 do nothing.
    pub fn prefault(&self) {
        let first = (self.ptr as usize).next_multiple_of(PAGE);
        let end = (self.ptr as usize + self.len) / PAGE * PAGE;
        if first >= end {
            return;
        }
        let middle = (first + (end - first) / 2) / PAGE * PAGE;
        let mut there = 0;
        // SAFETY: whole pages of memory that is allocated and writable; they are looked at, and
        // made or left as they are.
        unsafe {
            if libc::mincore(middle as *mut _, PAGE, &mut there) == 0 && there & 1 == 0 {
                libc::madvise(first as *mut _, end - first, libc::MADV_POPULATE_WRITE);
            }
        }
    }

    /// Parts with the first `n` bytes.
    pub fn take_first(&mut self, n: usize) -> Self {
        let first = Self {
            len: n.min(self.len),
            ..*self
        };
        self.skip(n);
        first
    }

    /// Copies `source` to the beginning, as far as there is room.
    #[inline]
    pub fn copy_from(&mut self, source: Source<'_>) {
        let n = source.len.min(self.len);
        // SAFETY: one is readable, the other writable for `n` bytes; `copy` lets them overlap.
        unsafe { std::ptr::copy(source.ptr, self.ptr, n) };
    }
}

impl<'a> From<&'a mut [u8]> for Target<'a> {
    fn from(bytes: &'a mut [u8]) -> Self {
        Self {
            ptr: bytes.as_mut_ptr(),
            len: bytes.len(),
            memory: PhantomData,
        }
    }
}

/// `pwrite(2)`: all of it, without moving the file's position.
pub fn write_at(fd: RawFd, mut from: Source<'_>, mut offset: usize) -> nix::Result<()> {
    while !from.is_empty() {
        // SAFETY: the source is readable for its length while it is borrowed.
        let n = unsafe { libc::pwrite(fd, from.ptr.cast(), from.len, offset as libc::off_t) };
        match Errno::result(n) {
            Ok(0) => return Err(Errno::ENOSPC),
            Ok(n) => {
                from = from.skip(n as usize);
                offset += n as usize;
            }
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// From this size on it is worth while to prefault memory that may be new.
const PREFAULT: usize = 256 << 10;

/// A vector with room for `len` bytes, whose pages are there; `ENOMEM` if there is no memory.
pub fn vec_with_room(len: usize) -> nix::Result<Vec<u8>> {
    let mut vec = Vec::new();
    vec.try_reserve_exact(len).map_err(|_| Errno::ENOMEM)?;
    if len >= PREFAULT {
        // SAFETY: so much was reserved, and the vector is not used meanwhile.
        unsafe { Target::from_raw(vec.as_mut_ptr(), len) }.prefault();
    }
    Ok(vec)
}

/// `read(2)`. Zero is the end of the file.
pub fn read(fd: RawFd, into: &Target<'_>) -> nix::Result<usize> {
    // SAFETY: the target is writable for its length while it is borrowed.
    let n = unsafe { libc::read(fd, into.ptr.cast(), into.len) };
    Errno::result(n).map(|n| n as usize)
}

/// `read(2)` that does not wait: `EAGAIN` if nothing is there, and also where the kernel cannot
/// promise not to wait (terminals, old kernels), which sends the caller to the path that may.
pub fn read_nowait(fd: RawFd, into: &Target<'_>) -> nix::Result<usize> {
    let iov = libc::iovec {
        iov_base: into.ptr.cast(),
        iov_len: into.len,
    };
    // SAFETY: one vector, valid while the target is borrowed.
    let n = unsafe { libc::preadv2(fd, &iov, 1, -1, libc::RWF_NOWAIT) };
    Errno::result(n)
        .map(|n| n as usize)
        .map_err(unsupported_is_again)
}

/// `writev(2)` of two pieces, which one call keeps together: a small frame arrives whole.
pub fn write2(fd: RawFd, first: Source<'_>, second: Source<'_>) -> nix::Result<usize> {
    let iov = vectors(first, second);
    // SAFETY: two vectors, valid for the lifetime of the sources.
    let n = unsafe { libc::writev(fd, iov.as_ptr(), iov.len() as libc::c_int) };
    Errno::result(n).map(|n| n as usize)
}

/// [`write2`] that does not wait; see [`read_nowait`].
pub fn write2_nowait(fd: RawFd, first: Source<'_>, second: Source<'_>) -> nix::Result<usize> {
    let iov = vectors(first, second);
    // SAFETY: two vectors, valid for the lifetime of the sources.
    let n = unsafe {
        libc::pwritev2(
            fd,
            iov.as_ptr(),
            iov.len() as libc::c_int,
            -1,
            libc::RWF_NOWAIT,
        )
    };
    Errno::result(n)
        .map(|n| n as usize)
        .map_err(unsupported_is_again)
}

fn vectors(first: Source<'_>, second: Source<'_>) -> [libc::iovec; 2] {
    [first, second].map(|part| libc::iovec {
        iov_base: part.ptr.cast_mut().cast(),
        iov_len: part.len,
    })
}

fn unsupported_is_again(errno: Errno) -> Errno {
    match errno {
        Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::ESPIPE | Errno::EINTR => Errno::EAGAIN,
        other => other,
    }
}

/// A one-way pipe: (reading end, writing end), close-on-exec.
pub fn pipe(nonblock: (bool, bool)) -> nix::Result<(OwnedFd, OwnedFd)> {
    let ends = pipe2(OFlag::O_CLOEXEC)?;
    make_nonblocking(&ends, nonblock)?;
    Ok(ends)
}

/// A two-way channel: a pair of connected Unix stream sockets, close-on-exec.
pub fn stream_pair(nonblock: (bool, bool)) -> nix::Result<(OwnedFd, OwnedFd)> {
    let ends = socketpair(
        AddressFamily::Unix,
        SockType::Stream,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?;
    make_nonblocking(&ends, nonblock)?;
    Ok(ends)
}

fn make_nonblocking(ends: &(OwnedFd, OwnedFd), wanted: (bool, bool)) -> nix::Result<()> {
    for (end, wanted) in [(&ends.0, wanted.0), (&ends.1, wanted.1)] {
        if wanted {
            let flags = OFlag::from_bits_retain(fcntl(end, FcntlArg::F_GETFL)?);
            fcntl(end, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        }
    }
    Ok(())
}

/// Device and inode: which file an open descriptor is of.
pub fn identity(fd: RawFd) -> nix::Result<(u64, u64)> {
    // SAFETY: an all-zero stat is valid.
    let mut status: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: `status` is writable; a number that is not open gives EBADF.
    Errno::result(unsafe { libc::fstat(fd, &raw mut status) })?;
    Ok((status.st_dev as u64, status.st_ino as u64))
}

/// Opens a file for writing, without ever waiting, that another process has open: it must be `file`,
/// as [`identity`] says.
pub fn open_of(pid: u32, fd: RawFd, file: (u64, u64)) -> nix::Result<OwnedFd> {
    let path = format!("/proc/{pid}/fd/{fd}");
    // Nothing else is even opened.
    let there = stat(path.as_str())?;
    if (there.st_dev as u64, there.st_ino as u64) != file {
        return Err(Errno::EBADF);
    }
    let flags = OFlag::O_WRONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    open(path.as_str(), flags, Mode::empty())
}

/// A close-on-exec copy of somebody's descriptor.
pub fn duplicate(fd: RawFd) -> nix::Result<OwnedFd> {
    // SAFETY: no pointers; the result is a descriptor that nobody else owns.
    let copy = Errno::result(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) })?;
    // SAFETY: fresh from the kernel.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Gives a descriptor away as a number, for Python to close.
pub fn into_raw(fd: OwnedFd) -> RawFd {
    fd.into_raw_fd()
}

/// Takes a descriptor number that the caller owns.
///
/// # Safety
/// `fd` must be open and belong to nobody else.
pub unsafe fn from_raw(fd: RawFd) -> OwnedFd {
    // SAFETY: the caller's promise.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn nowait_says_eagain_on_blocking_descriptors() {
        for (a, b) in [
            pipe((false, false)).unwrap(),
            stream_pair((false, false)).unwrap(),
        ] {
            let mut room = [0u8; 8];
            let target = Target::from(&mut room[..]);
            assert_eq!(read_nowait(a.as_raw_fd(), &target), Err(Errno::EAGAIN));
            let sent = write2_nowait(
                b.as_raw_fd(),
                Source::from(&b"ab"[..]),
                Source::from(&b"cde"[..]),
            );
            assert_eq!(sent, Ok(5));
            assert_eq!(read_nowait(a.as_raw_fd(), &target), Ok(5));
            assert_eq!(&room[..5], b"abcde");
        }
    }

    #[test]
    fn a_full_pipe_takes_no_more_and_does_not_wait() {
        let (_reader, writer) = pipe((false, false)).unwrap();
        let block = vec![7u8; 1 << 20];
        let fd = writer.as_raw_fd();
        let first = write2_nowait(fd, Source::from(&block[..]), Source::from(&b""[..])).unwrap();
        assert!(first < block.len());
        let again = write2_nowait(fd, Source::from(&block[..]), Source::from(&b""[..]));
        assert_eq!(again, Err(Errno::EAGAIN));
    }

    #[test]
    fn skipping_and_copying_stay_inside() {
        let source = Source::from(&b"hello"[..]);
        assert_eq!(source.skip(2).to_vec(), b"llo");
        assert!(source.skip(99).is_empty());
        let mut room = [0u8; 4];
        let mut target = Target::from(&mut room[..]);
        target.copy_from(Source::from(&b"abcdefgh"[..]));
        target.skip(3);
        assert_eq!(target.len(), 1);
        target.skip(3);
        assert!(target.is_empty());
        assert_eq!(&room, b"abcd");
    }

    #[test]
    fn ends_are_close_on_exec_and_non_blocking_where_asked() {
        let (a, b) = stream_pair((true, false)).unwrap();
        for (fd, nonblocking) in [(&a, true), (&b, false)] {
            let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL).unwrap());
            assert_eq!(flags.contains(OFlag::O_NONBLOCK), nonblocking);
            assert_eq!(
                fcntl(fd, FcntlArg::F_GETFD).unwrap() & libc::FD_CLOEXEC,
                libc::FD_CLOEXEC
            );
        }
    }
}
