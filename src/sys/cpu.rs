//! The processors of the machine, those that this process may run on, and the one that a thread is
//! on.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// How many this process may run on; 1 if that cannot be told.
pub fn usable() -> usize {
    // SAFETY: plain data, filled by the call.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is as large as stated.
    let failed =
        unsafe { libc::sched_getaffinity(0, std::mem::size_of::<libc::cpu_set_t>(), &mut set) };
    if failed != 0 {
        return 1;
    }
    // SAFETY: reads the set filled above.
    unsafe { libc::CPU_COUNT(&set) as usize }
}

/// Whether the machine has more than one (spinning pays only then). That this process may run on
/// one alone does not say where those are that it waits for.
pub fn many_cpus() -> bool {
    static ONLINE: AtomicI64 = AtomicI64::new(0);
    if ONLINE.load(Ordering::Relaxed) == 0 {
        // SAFETY: has no preconditions; an error (-1) stays one.
        let online = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
        ONLINE.store(online, Ordering::Relaxed);
    }
    ONLINE.load(Ordering::Relaxed) > 1
}

fn current() -> u64 {
    // SAFETY: has no preconditions; an error (-1) becomes 0, not known.
    let cpu = unsafe { libc::sched_getcpu() };
    u64::try_from(cpu + 1).unwrap_or(0)
}

/// Notes in `word` where this thread is.
#[inline]
pub fn note(word: &AtomicU64) {
    word.store(current(), Ordering::Relaxed);
}

/// Notes in `word` where this thread is, and in `other` where who noted it before was, if that was
/// another processor.
pub fn note_other(word: &AtomicU64, other: &AtomicU64) {
    let here = current();
    let there = word.swap(here, Ordering::Relaxed);
    if there != here {
        other.store(there, Ordering::Relaxed);
    }
}

/// Whether who last noted it was on another processor: only then can it do anything while we look
/// on. If nobody has, whether there is another one.
pub fn is_elsewhere(word: &AtomicU64) -> bool {
    match word.load(Ordering::Relaxed) {
        0 => many_cpus(),
        there => there != current(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_notes_it_is_here_or_was_moved() {
        let word = AtomicU64::new(0);
        let here = (0..1000).any(|_| {
            note(&word);
            !is_elsewhere(&word)
        });
        assert!(here);
        word.store(u64::MAX, Ordering::Relaxed);
        assert!(is_elsewhere(&word));
    }
}
