//! Which processor this thread runs on, as a word that others can look at.

use std::sync::atomic::{AtomicU64, Ordering};

use super::parking::many_cpus;

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
