//! The processors that this process may run on.

/// Whether there is more than one (spinning pays only then).
pub fn many_cpus() -> bool {
    // SAFETY: plain data, filled by the call.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is as large as stated.
    let failed =
        unsafe { libc::sched_getaffinity(0, std::mem::size_of::<libc::cpu_set_t>(), &mut set) };
    // SAFETY: reads the set filled above.
    failed == 0 && unsafe { libc::CPU_COUNT(&set) } > 1
}
