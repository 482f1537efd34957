//! Anonymous shared memory: a memfd and its mapping.

use std::ffi::CStr;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::fstat;
use nix::unistd::ftruncate;

use super::io::{Source, Target};

/// What lock words are aligned to, so that no two of them share a cache line.
pub const LINE: usize = 64;
/// What mappings are rounded up to.
pub const PAGE: usize = 4096;

/// One cache line of shared words. *Process-shared*; every bit pattern is valid.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Line([AtomicU64; 8]);

impl Deref for Line {
    type Target = [AtomicU64; 8];
    #[inline]
    fn deref(&self) -> &[AtomicU64; 8] {
        &self.0
    }
}

/// A whole memfd, mapped shared. *Process-local* handle of *process-shared* memory: a forked child
/// has the same mapping and descriptor, another process makes its own with [`Mapping::adopt`].
/// Unmapped and closed when dropped, in each process by itself; the memory goes with the last.
#[derive(Debug)]
pub struct Mapping {
    fd: ManuallyDrop<OwnedFd>,
    fd_is_closed: AtomicBool,
    /// (device, inode): programs that become daemons close descriptors that are not theirs
    file: (u64, u64),
    map: MmapRaw,
}

impl Mapping {
    /// Fresh memory, all zero, that no process can shorten under another (that would be SIGBUS).
    /// Pages come from the system when they are touched.
    pub fn create(name: &CStr, len: usize) -> nix::Result<Self> {
        if len as u64 > system_memory() {
            return Err(Errno::ENOMEM);
        }
        let fd = memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        ftruncate(&fd, libc::off_t::try_from(len).map_err(|_| Errno::ENOMEM)?)?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals))?;
        Self::adopt(fd, len)
    }

    /// As [`create`](Self::create), but the file behind the memory can grow beyond what is mapped:
    /// see `sys::extent`.
    pub fn create_growable(name: &CStr, len: usize) -> nix::Result<Self> {
        let fd = memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        ftruncate(&fd, libc::off_t::try_from(len).map_err(|_| Errno::ENOMEM)?)?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals))?;
        Self::adopt(fd, len)
    }

    /// Maps the first `len` bytes of memory that another process created.
    pub fn adopt(fd: OwnedFd, len: usize) -> nix::Result<Self> {
        let stat = fstat(&fd)?;
        if len == 0 || u64::try_from(stat.st_size).is_ok_and(|size| size < len as u64) {
            return Err(Errno::EINVAL);
        }
        let map = MmapOptions::new()
            .len(len)
            .map_raw(&fd)
            .map_err(|error| error.raw_os_error().map_or(Errno::ENOMEM, Errno::from_raw))?;
        Ok(Self {
            fd: ManuallyDrop::new(fd),
            fd_is_closed: AtomicBool::new(false),
            file: (stat.st_dev, stat.st_ino),
            map,
        })
    }

    pub fn len(&self) -> usize {
        self.map.len()
    }

    pub fn is_empty(&self) -> bool {
        false
    }

    /// The descriptor, if it still is this memory's: `EBADF` when someone closed it behind our
    /// back (the memory itself stays usable).
    pub fn fd(&self) -> nix::Result<RawFd> {
        if self.fd_is_ours() {
            Ok(self.fd.as_raw_fd())
        } else {
            Err(Errno::EBADF)
        }
    }

    /// Closes the descriptor. The memory stays mapped.
    pub fn close_fd(&self) {
        if self.fd_is_ours() && !self.fd_is_closed.swap(true, Ordering::Relaxed) {
            drop(take_over(self.fd.as_raw_fd()));
        }
    }

    fn fd_is_ours(&self) -> bool {
        let is_open = !self.fd_is_closed.load(Ordering::Relaxed);
        is_open && fstat(&*self.fd).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == self.file)
    }

    /// The address of the byte at `offset`, of `len` that are in range.
    pub fn address(&self, offset: usize, len: usize) -> NonNull<u8> {
        assert!(offset <= self.len() && len <= self.len() - offset);
        // SAFETY: in range (asserted), so neither null nor outside of the mapping.
        unsafe { NonNull::new_unchecked(self.map.as_mut_ptr().add(offset)) }
    }

    /// The line of words at `offset`, which must be aligned.
    pub fn line(&self, offset: usize) -> &Line {
        assert!(offset.is_multiple_of(LINE));
        // SAFETY: in range (`address` asserts) and aligned (asserted; mappings are page-aligned),
        // every bit pattern is valid, and others change it through atomics only.
        unsafe { self.address(offset, LINE).cast::<Line>().as_ref() }
    }

    /// `count` words from `offset` on, which must be aligned.
    pub fn words(&self, offset: usize, count: usize) -> &[AtomicU64] {
        assert!(offset.is_multiple_of(8));
        let start = self.address(offset, count * 8).cast::<AtomicU64>();
        // SAFETY: as in `line`.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), count) }
    }

    /// Zeroes a range that nobody else uses.
    pub fn zero(&self, offset: usize, len: usize) {
        // SAFETY: in range; the allocator calls this before it gives the block to anyone.
        unsafe { self.address(offset, len).write_bytes(0, len) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.close_fd();
    }
}

/// A line of words that keeps its memory mapped. *Process-local* handle.
#[derive(Clone, Debug)]
pub struct LineRef {
    line: NonNull<Line>,
    _keep: Arc<Mapping>,
}

// SAFETY: a shared reference to atomics, in memory that the Arc keeps mapped.
unsafe impl Send for LineRef {}
// SAFETY: as above.
unsafe impl Sync for LineRef {}

impl LineRef {
    pub fn new(mapping: &Arc<Mapping>, offset: usize) -> Self {
        Self {
            line: NonNull::from(mapping.line(offset)),
            _keep: Arc::clone(mapping),
        }
    }
}

impl Deref for LineRef {
    type Target = Line;
    #[inline]
    fn deref(&self) -> &Line {
        // SAFETY: points into a mapping that `_keep` keeps.
        unsafe { self.line.as_ref() }
    }
}

/// A range of bytes that keeps its memory mapped. *Process-local* handle.
///
/// Who may write or read which bytes is the business of the protocol that they are used by; here
/// they are copied in and out, so that no Rust reference to them is ever made.
#[derive(Clone, Debug)]
pub struct BytesRef {
    start: NonNull<u8>,
    len: usize,
    _keep: Arc<Mapping>,
}

// SAFETY: an address range that the Arc keeps mapped, and that is only copied from and to.
unsafe impl Send for BytesRef {}
// SAFETY: as above.
unsafe impl Sync for BytesRef {}

impl BytesRef {
    pub fn new(mapping: &Arc<Mapping>, offset: usize, len: usize) -> Self {
        Self {
            start: mapping.address(offset, len),
            len,
            _keep: Arc::clone(mapping),
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// `len` of the bytes from `offset` on, to copy into.
    #[inline]
    pub fn target(&self, offset: usize, len: usize) -> Target<'_> {
        assert!(offset <= self.len && len <= self.len - offset);
        // SAFETY: in range (asserted) of memory that stays mapped while `self` is borrowed.
        unsafe { Target::from_raw(self.start.as_ptr().add(offset), len) }
    }

    /// `len` of the bytes from `offset` on, to copy from.
    #[inline]
    pub fn source(&self, offset: usize, len: usize) -> Source<'_> {
        assert!(offset <= self.len && len <= self.len - offset);
        // SAFETY: as in `target`.
        unsafe { Source::from_raw(self.start.as_ptr().add(offset), len) }
    }
}

/// A row of words that keeps its memory mapped. *Process-local* handle.
#[derive(Clone, Debug)]
pub struct WordsRef {
    start: NonNull<AtomicU64>,
    count: usize,
    _keep: Arc<Mapping>,
}

// SAFETY: a shared reference to atomics, in memory that the Arc keeps mapped.
unsafe impl Send for WordsRef {}
// SAFETY: as above.
unsafe impl Sync for WordsRef {}

impl WordsRef {
    pub fn new(mapping: &Arc<Mapping>, offset: usize, count: usize) -> Self {
        let words = mapping.words(offset, count);
        Self {
            start: NonNull::from(words).cast(),
            count,
            _keep: Arc::clone(mapping),
        }
    }
}

impl Deref for WordsRef {
    type Target = [AtomicU64];
    #[inline]
    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: points to `count` words in a mapping that `_keep` keeps.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.count) }
    }
}

/// Bytes of memory and swap that this machine has: what is larger can never be filled.
pub fn system_memory() -> u64 {
    // SAFETY: plain data, filled by the call.
    let mut info: libc::sysinfo = unsafe { std::mem::zeroed() };
    // SAFETY: writes to the struct given.
    if unsafe { libc::sysinfo(&mut info) } != 0 {
        return u64::MAX;
    }
    let units = info.totalram.saturating_add(info.totalswap);
    u64::from(info.mem_unit.max(1)).saturating_mul(units)
}

/// Takes over a descriptor that was handed over as a number, and keeps it from being inherited.
pub fn take_over(fd: RawFd) -> nix::Result<OwnedFd> {
    if fd < 0 {
        return Err(Errno::EBADF);
    }
    // SAFETY: whoever gave us the number gave us the descriptor.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    if let Err(errno) = fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)) {
        std::mem::forget(fd); // not open: not ours to close
        return Err(errno);
    }
    Ok(fd)
}

/// 128 random bits from the system.
pub fn random_id() -> nix::Result<u128> {
    let mut bytes = [0u8; 16];
    // SAFETY: fills the buffer of the length given; so few bytes never come in parts.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    Errno::result(got)?;
    Ok(u128::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_mapping_shows_the_same_words() {
        let one = Mapping::create(c"test", PAGE).unwrap();
        one.line(LINE)[3].store(7, Ordering::Relaxed);
        let fd = nix::unistd::dup(&*one.fd).unwrap();
        let two = Mapping::adopt(fd, PAGE).unwrap();
        assert_eq!(two.line(LINE)[3].load(Ordering::Relaxed), 7);
        two.zero(LINE, LINE);
        assert_eq!(one.line(LINE)[3].load(Ordering::Relaxed), 0);
    }

    #[test]
    fn nobody_can_shorten_the_memory() {
        let one = Mapping::create(c"test", PAGE).unwrap();
        assert_eq!(ftruncate(&*one.fd, 0), Err(Errno::EPERM));
    }

    #[test]
    fn more_than_the_machine_has_is_refused_at_once() {
        let error = Mapping::create(c"test", usize::MAX / 2).unwrap_err();
        assert_eq!(error, Errno::ENOMEM);
    }

    #[test]
    fn a_descriptor_that_someone_else_closed_is_not_closed_again() {
        let one = Mapping::create(c"test", PAGE).unwrap();
        let raw = one.fd.as_raw_fd();
        let other = Mapping::create(c"other", PAGE).unwrap();
        // What a daemon that closes everything and opens its own files does.
        // SAFETY: the test owns both descriptors; the new one has a new owner.
        let still = unsafe { nix::unistd::dup2_raw(&*other.fd, raw) }.unwrap();
        assert_eq!(one.fd(), Err(Errno::EBADF));
        one.line(0)[0].store(1, Ordering::Relaxed);
        drop(one);
        assert!(fstat(&still).is_ok());
    }
}
