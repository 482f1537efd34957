//! Named POSIX semaphores: we make none, but `sem_unlink` has to remove other people's.

use std::ffi::CString;

use nix::errno::Errno;

/// See `sem_unlink(3)`.
pub fn unlink(name: &str) -> nix::Result<()> {
    let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
    // SAFETY: a terminated string.
    Errno::result(unsafe { libc::sem_unlink(name.as_ptr()) }).map(drop)
}
