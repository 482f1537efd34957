//! Sleeping on a word of shared memory, and waking who sleeps there.
//!
//! Words are 64 bits wide, because the protocols of `ipc` change a state and its tag in one
//! compare-and-swap; the kernel compares the low 32 bits, so everything that a sleeper must not
//! miss is in there. The key is the physical page: it works from any mapping of the memory.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use nix::errno::Errno;

/// Wakes all sleepers.
pub const EVERYONE: u32 = i32::MAX as u32;

/// Where the low 32 bits of a word are.
fn low_half(word: &AtomicU64) -> *const u32 {
    let start = word.as_ptr().cast::<u32>().cast_const();
    if cfg!(target_endian = "little") {
        start
    } else {
        start.wrapping_add(1)
    }
}

/// Sleeps while the low half of `word` is `expected`: until a wake-up or any change (`Ok`), a
/// signal (`EINTR`) or the time is over (`ETIMEDOUT`). `Ok` says nothing about the word: callers
/// look again.
pub fn wait(word: &AtomicU64, expected: u32, timeout: Option<Duration>) -> nix::Result<()> {
    let limit = timeout.map(|t| libc::timespec {
        tv_sec: t.as_secs().min(i64::MAX as u64) as libc::time_t,
        tv_nsec: t.subsec_nanos() as libc::c_long,
    });
    let limit = limit
        .as_ref()
        .map_or(std::ptr::null(), std::ptr::from_ref::<libc::timespec>);
    // SAFETY: the address is an aligned word that is valid for the whole call, `limit` is null or
    // a timespec that is; FUTEX_WAIT writes to neither.
    let done = unsafe {
        libc::syscall(
            libc::SYS_futex,
            low_half(word),
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

/// Wakes up to `count` sleepers, first come first served; how many there were to wake.
pub fn wake(word: &AtomicU64, count: u32) -> usize {
    // SAFETY: FUTEX_WAKE only looks the address up.
    let woken = unsafe {
        libc::syscall(
            libc::SYS_futex,
            low_half(word),
            libc::FUTEX_WAKE,
            count.min(EVERYONE),
        )
    };
    usize::try_from(woken).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_word_that_changed_before_is_not_slept_on() {
        let word = AtomicU64::new(1 << 32 | 5);
        assert_eq!(wait(&word, 4, None), Ok(()));
    }

    #[test]
    fn waiting_ends_at_the_timeout() {
        let word = AtomicU64::new(5);
        let start = Instant::now();
        let limit = Duration::from_millis(5);
        assert_eq!(wait(&word, 5, Some(limit)), Err(Errno::ETIMEDOUT));
        assert!(start.elapsed() >= limit);
    }

    #[test]
    fn a_sleeper_is_woken_and_counted() {
        let word = AtomicU64::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while word.load(Ordering::Acquire) == 0 {
                    let _ = wait(&word, 0, None);
                }
            });
            while wake(&word, 1) == 0 {
                std::thread::yield_now();
            }
            word.store(1, Ordering::Release);
            wake(&word, EVERYONE);
        });
    }
}
