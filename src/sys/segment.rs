//! Anonymous shared memory that a pool and its workers map: one memfd, a head that stays mapped
//! and extents behind it that come and go.
//!
//! *Process-shared* memory behind a *process-local* mapping. After `fork` both processes have the
//! same mapping; a spawned process makes its own from the descriptor ([`Segment::open`]).

use std::ffi::CStr;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, munmap};
use nix::sys::stat::fstat;
use nix::unistd::ftruncate;

use super::descriptor::Descriptor;
use super::io::{self, Source, Target};

pub const PAGE: usize = 4096;

/// A mapped range of a memfd; unmapped when dropped.
#[derive(Debug)]
pub struct Map {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: a Map is an address range that lives until it is dropped; what is in it is only reached
// through atomics and copies, whose order the protocols of `ipc` define.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

impl Map {
    fn new(fd: BorrowedFd<'_>, offset: usize, len: usize, flags: MapFlags) -> nix::Result<Self> {
        let size = NonZeroUsize::new(len).ok_or(Errno::EINVAL)?;
        // SAFETY: a fresh mapping at an address that the kernel chooses disturbs no other memory.
        let base = unsafe {
            mmap(
                None,
                size,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                flags,
                fd,
                offset as libc::off_t,
            )?
        };
        Ok(Self {
            base: base.cast(),
            len,
        })
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn address(&self) -> usize {
        self.base.as_ptr() as usize
    }

    /// The 64-bit word at `offset` bytes, which must be aligned.
    pub fn u64(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset + 8 <= self.len);
        // SAFETY: in range and aligned (asserted; mappings are page-aligned), and every bit
        // pattern is a valid AtomicU64.
        unsafe { &*self.base.as_ptr().add(offset).cast::<AtomicU64>() }
    }

    /// The 32-bit word at `offset` bytes, which must be aligned.
    pub fn u32(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4) && offset + 4 <= self.len);
        // SAFETY: as in `u64`.
        unsafe { &*self.base.as_ptr().add(offset).cast::<AtomicU32>() }
    }

    /// Copies what others may be writing to at the same time to `offset`.
    pub fn copy_in(&self, offset: usize, bytes: Source<'_>) {
        assert!(offset <= self.len && bytes.len() <= self.len - offset);
        // SAFETY: the target range is inside the mapping (asserted).
        let mut target = unsafe { Target::from_raw(self.base.as_ptr().add(offset), bytes.len()) };
        target.copy_from(bytes);
    }

    /// Copies `bytes` to `offset`.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(offset <= self.len && bytes.len() <= self.len - offset);
        // SAFETY: the target range is inside the mapping (asserted) and `bytes` is not part of it:
        // nothing hands out a mutable slice of a mapping.
        unsafe {
            std::ptr::copy_nonoverlapping(
                bytes.as_ptr(),
                self.base.as_ptr().add(offset),
                bytes.len(),
            );
        }
    }

    /// The bytes of a range that the caller owns by the protocol (a claimed slot, a committed
    /// record, a lent extent).
    ///
    /// A peer that breaks the protocol may change them meanwhile; every decoder therefore treats
    /// them as untrusted, and reads no length twice.
    pub fn bytes(&self, offset: usize, len: usize) -> &[u8] {
        assert!(offset <= self.len && len <= self.len - offset);
        // SAFETY: inside the mapping (asserted), which outlives the borrow; u8 has no invalid
        // values.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().add(offset), len) }
    }

    fn advise(&self, advice: MmapAdvise) {
        // SAFETY: changes what forks do with this mapping, which only the children that get it
        // rely on.
        let _ = unsafe { madvise(self.base.cast(), self.len, advice) };
    }

    /// Makes the page tables for pages that exist, in one go and not one fault after the other.
    /// Kernels before 5.14 cannot; nothing but time is lost then.
    pub fn prefault(&self) {
        // SAFETY: only looks at pages of this mapping.
        let _ = unsafe { madvise(self.base.cast(), self.len, MmapAdvise::MADV_POPULATE_READ) };
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `new` and no borrow of it outlives self.
        let _ = unsafe { munmap(self.base.cast(), self.len) };
    }
}

/// A memfd with its head mapped. Several handles share it: those of its extents, for one.
#[derive(Debug)]
pub struct Segment {
    fd: Descriptor,
    head: Map,
}

impl Segment {
    /// A fresh segment, all zero, whose first `head` bytes are mapped.
    pub fn create(name: &CStr, head: usize) -> nix::Result<Arc<Self>> {
        let fd = memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        ftruncate(&fd, head as libc::off_t)?;
        // Nobody can shorten it under a mapping, which would be SIGBUS.
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals))?;
        Self::open(fd, head)
    }

    /// The segment behind a descriptor that another process made; `EINVAL` if it is too short.
    pub fn open(fd: OwnedFd, head: usize) -> nix::Result<Arc<Self>> {
        if usize::try_from(fstat(&fd)?.st_size).unwrap_or(0) < head {
            return Err(Errno::EINVAL);
        }
        let map = Map::new(fd.as_fd(), 0, head, MapFlags::MAP_SHARED)?;
        Ok(Arc::new(Self {
            fd: Descriptor::new(fd),
            head: map,
        }))
    }

    pub fn head(&self) -> &Map {
        &self.head
    }

    pub fn raw_fd(&self) -> i32 {
        self.fd.raw()
    }

    /// Closes the descriptor: no more extents can be made or mapped. What is mapped stays.
    pub fn close(&self) {
        self.fd.close();
    }

    /// Forked children do not get the mapping of the head.
    pub fn withhold(&self) {
        self.head.advise(MmapAdvise::MADV_DONTFORK);
    }

    /// Forked children get the mapping of the head again.
    pub fn admit(&self) {
        self.head.advise(MmapAdvise::MADV_DOFORK);
    }

    /// Makes the file at least `end` bytes long and gives `[offset, end)` real pages, so that a
    /// full disk or memory limit is an error here and not a SIGBUS at the first write.
    pub fn reserve(&self, offset: usize, end: usize) -> nix::Result<()> {
        let fd = self.fd.get()?;
        loop {
            let len = (end - offset) as libc::off_t;
            match fallocate(&fd, FallocateFlags::empty(), offset as libc::off_t, len) {
                Err(Errno::EINTR) => {}
                other => return other,
            }
        }
    }

    /// How long the file is; it never gets shorter.
    pub fn file_len(&self) -> nix::Result<usize> {
        Ok(usize::try_from(fstat(self.fd.get()?)?.st_size).unwrap_or(0))
    }

    /// How much memory the file takes.
    pub fn resident_bytes(&self) -> nix::Result<usize> {
        Ok(usize::try_from(fstat(self.fd.get()?)?.st_blocks * 512).unwrap_or(0))
    }

    /// Writes without a mapping, which is what new pages cost least with. The file gets longer as
    /// needed; no memory is an error.
    pub fn write_at(&self, offset: usize, bytes: Source<'_>) -> nix::Result<()> {
        io::write_at(self.fd.get()?.as_raw_fd(), bytes, offset)
    }

    /// Reads without a mapping: exactly `len` bytes. `EIO` if the file ends before, `ENOMEM` if
    /// there is no memory for so many.
    pub fn read_at(&self, offset: usize, len: usize) -> nix::Result<Vec<u8>> {
        let mut bytes = io::vec_with_room(len)?;
        let file = self.fd.get()?;
        while bytes.len() < len {
            let (fd, done) = (file.as_raw_fd(), bytes.len());
            let room = &mut bytes.spare_capacity_mut()[..len - done];
            let (start, count) = (room.as_mut_ptr().cast(), room.len());
            // SAFETY: writes at most `count` bytes to the room that was reserved for them.
            let got = unsafe { libc::pread(fd, start, count, (offset + done) as libc::off_t) };
            match Errno::result(got) {
                Ok(0) => return Err(Errno::EIO),
                // SAFETY: so many bytes more have been written.
                Ok(n) => unsafe { bytes.set_len(done + n as usize) },
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(bytes)
    }

    /// Gives the pages of a range back to the system.
    pub fn punch(&self, offset: usize, len: usize) {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        if let Ok(fd) = self.fd.get() {
            let _ = fallocate(&fd, flags, offset as libc::off_t, len as libc::off_t);
        }
    }

    /// Maps an extent: writes are seen by every process.
    pub fn map_shared(&self, offset: usize, len: usize) -> nix::Result<Map> {
        Map::new(self.fd.get()?.as_fd(), offset, len, MapFlags::MAP_SHARED)
    }

    /// Maps an extent: writes stay in this process (copy on write).
    pub fn map_private(&self, offset: usize, len: usize) -> nix::Result<Map> {
        Map::new(self.fd.get()?.as_fd(), offset, len, MapFlags::MAP_PRIVATE)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn two_mappings_see_the_same_bytes_and_a_private_one_keeps_its_own() {
        let segment = Segment::create(c"test", PAGE).unwrap();
        segment.head().u64(8).store(7, Ordering::Relaxed);
        let again = segment.map_shared(0, PAGE).unwrap();
        assert_eq!(again.u64(8).load(Ordering::Relaxed), 7);
        let private = segment.map_private(0, PAGE).unwrap();
        private.write(8, &[9]);
        assert_eq!(again.bytes(8, 1), &[7]);
    }

    #[test]
    fn reserving_grows_the_file() {
        let segment = Segment::create(c"test", PAGE).unwrap();
        segment.reserve(4 * PAGE, 8 * PAGE).unwrap();
        let map = segment.map_shared(4 * PAGE, 4 * PAGE).unwrap();
        map.write(4 * PAGE - 1, &[1]);
        segment.punch(4 * PAGE, 4 * PAGE);
        assert_eq!(map.bytes(4 * PAGE - 1, 1), &[0]);
    }
}
