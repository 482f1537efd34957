//! The clock that all processes of the machine share and nobody can set.

use std::time::Duration;

/// The time since some moment in the past.
pub fn now() -> Duration {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes to the struct given.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_on() {
        let start = now();
        while now() == start {
            std::hint::spin_loop();
        }
        assert!(now() > start);
    }
}
