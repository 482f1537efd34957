//! Sleeping on a word of shared memory, and waking who sleeps there.

use std::sync::atomic::AtomicU32;
use std::time::Duration;

use nix::errno::Errno;

/// Sleeps while `word` is `expected`: until a wake-up, a signal (`EINTR`) or `timeout`
/// (`ETIMEDOUT`). `Ok` says nothing about the word: callers look again.
pub fn wait(word: &AtomicU32, expected: u32, timeout: Option<Duration>) -> nix::Result<()> {
    let limit = timeout.map(|t| libc::timespec {
        tv_sec: t.as_secs().min(i64::MAX as u64) as libc::time_t,
        tv_nsec: t.subsec_nanos() as libc::c_long,
    });
    let limit = limit
        .as_ref()
        .map_or(std::ptr::null(), |t| t as *const libc::timespec);
    // SAFETY: `word` is an aligned 32-bit word that is valid for the call, `limit` is null or a
    // timespec that is; FUTEX_WAIT writes nothing.
    let done = unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT,
            expected,
            limit,
        )
    };
    match Errno::result(done) {
        Ok(_) | Err(Errno::EAGAIN) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Wakes up to `count` sleepers on `word`.
pub fn wake(word: &AtomicU32, count: i32) {
    // SAFETY: as above; FUTEX_WAKE looks at the address only.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, count) };
}

/// Whether this process may run on more than one CPU (spinning pays only then).
pub fn many_cpus() -> bool {
    // SAFETY: plain data, filled by the call.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is as large as stated.
    let failed =
        unsafe { libc::sched_getaffinity(0, std::mem::size_of::<libc::cpu_set_t>(), &mut set) };
    // SAFETY: reads the set filled above.
    failed == 0 && unsafe { libc::CPU_COUNT(&set) } > 1
}
