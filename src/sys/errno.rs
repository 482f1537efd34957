//! The text of an errno, as Python's `os.strerror` gives it.

use std::ffi::CStr;

use nix::errno::Errno;

/// What the C library says about `errno`, so that our `OSError`s read like the interpreter's own.
pub fn strerror(errno: Errno) -> String {
    let mut text = [0 as libc::c_char; 256];
    // SAFETY: the buffer is writable for the length given, and strerror_r (the POSIX variant that
    // libc binds) writes a terminated string into it or fails.
    let failed = unsafe { libc::strerror_r(errno as i32, text.as_mut_ptr(), text.len()) } != 0;
    if failed {
        return format!("Unknown error {}", errno as i32);
    }
    // SAFETY: strerror_r succeeded, so the buffer holds a string with its terminator.
    unsafe { CStr::from_ptr(text.as_ptr()) }
        .to_string_lossy()
        .into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_the_c_library_s() {
        assert_eq!(strerror(Errno::EAGAIN), "Resource temporarily unavailable");
        assert_eq!(strerror(Errno::ENOENT), "No such file or directory");
    }
}
