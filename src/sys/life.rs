//! Whether a process that left its mark in shared memory still lives.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use super::fork;

/// A process as its marks name it: the pid, and the low bits of its start time (clock ticks since
/// boot), which tell it from a later process of the same pid. Stamp 0: not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub pid: u32,
    pub stamp: u32,
}

/// What is known of this process: pid and stamp, as a word. *Process-local*; a forked child sees
/// that it is not its own.
static SELF: AtomicU64 = AtomicU64::new(0);

/// This process.
#[inline]
pub fn me() -> Identity {
    let pid = fork::pid();
    let known = SELF.load(Ordering::Relaxed);
    if known as u32 == pid {
        let stamp = (known >> 32) as u32;
        return Identity { pid, stamp };
    }
    find_out(pid)
}

#[cold]
fn find_out(pid: u32) -> Identity {
    let stamp = read_stat(pid).map_or(0, |stat| stat.stamp);
    SELF.store(u64::from(stamp) << 32 | u64::from(pid), Ordering::Relaxed);
    Identity { pid, stamp }
}

/// The calling thread, by the number that Python knows it by.
#[inline]
pub fn thread() -> u64 {
    // SAFETY: has no preconditions.
    unsafe { libc::pthread_self() as u64 }
}

/// Whether a process of this pid exists, as a zombie too: one system call.
pub fn exists(pid: u32) -> bool {
    // 0 and "negative" ones are process groups to kill(2).
    i32::try_from(pid)
        .is_ok_and(|pid| pid != 0 && kill(Pid::from_raw(pid), None) != Err(Errno::ESRCH))
}

/// Whether this very process still runs. A zombie does not: nobody may ever collect it.
/// When in doubt (no `/proc`), it does.
pub fn runs(who: Identity) -> bool {
    if !exists(who.pid) {
        return false;
    }
    match read_stat(who.pid) {
        Some(stat) => !stat.ended && (who.stamp == 0 || stat.stamp == 0 || stat.stamp == who.stamp),
        None => exists(who.pid),
    }
}

struct Stat {
    ended: bool,
    stamp: u32,
}

/// The fields of `/proc/PID/stat` that say what we ask; they follow the name in parentheses,
/// which may itself hold any character.
fn read_stat(pid: u32) -> Option<Stat> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let after_name = text.iter().rposition(|&c| c == b')')? + 1;
    let text = std::str::from_utf8(&text[after_name..]).ok()?;
    let fields: Vec<&str> = text.split_ascii_whitespace().collect();
    let state = *fields.first()?;
    let threads: u32 = fields.get(17)?.parse().ok()?;
    let start: u64 = fields.get(19)?.parse().ok()?;
    Some(Stat {
        // A first thread that has ended leaves a "zombie" whose other threads run on.
        ended: matches!(state, "Z" | "X" | "x") && threads <= 1,
        stamp: start as u32,
    })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn this_process_runs() {
        let me = me();
        assert!(me.stamp != 0);
        assert!(runs(me));
        assert!(runs(Identity { stamp: 0, ..me }));
    }

    #[test]
    fn another_process_of_the_same_pid_is_not_the_one_that_was_meant() {
        let me = me();
        assert!(!runs(Identity {
            stamp: me.stamp.wrapping_add(1),
            ..me
        }));
    }

    #[test]
    fn a_zombie_exists_but_does_not_run() {
        let mut child = Command::new("true").spawn().unwrap();
        let pid = child.id();
        while runs(Identity { pid, stamp: 0 }) {
            std::thread::yield_now();
        }
        assert!(exists(pid));
        child.wait().unwrap();
        assert!(!exists(pid));
    }
}
