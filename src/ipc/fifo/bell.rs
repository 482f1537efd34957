//! Waiting for a message, a place or room in a ring, and telling those who wait.
//!
//! A bell is a word with [`SLEEPERS`] in it and, in the bits below, a turn that only grows.
//!
//! ```text
//!  who waits                                 who changes the ring
//!  set SLEEPERS, remember the word           change it
//!  fence                                     fence
//!  look at the ring; enough? do not sleep    SLEEPERS set? wake as many as can go on; if fewer
//!  sleep while the word is as it was         were asleep: clear it, next turn, wake all
//! ```
//! The turn is for one who has looked but does not sleep yet, while another sets SLEEPERS anew:
//! without it the word would be as it was.
//!
//! Both sides have a fence between their store and their look: who waits sees the change, or who
//! changes sees SLEEPERS. Nobody waits longer than 90 ms in one piece: a process that dies between
//! being woken and taking what it was woken for, or between its change and its look, would leave
//! the others asleep for ever.

use std::time::Duration;

use super::{At, Store};
use crate::ipc::atomic::{Ordering, fence};
use crate::ipc::wait::{Pace, Sleeper, Slept};
use crate::ipc::word::{SLEEPERS, Word};
use crate::sys::futex::EVERYONE;

/// Something has changed that lets `count` of those go on who wait at this bell.
#[inline]
pub fn ring<S: Store>(store: &S, bell: At, count: u32) {
    fence(Ordering::SeqCst);
    let word = store.word(bell);
    if word.load() & SLEEPERS != 0 {
        wake(word, count);
    }
}

/// As [`ring`], for all of them and only if `ready` says so; asked only if somebody waits.
#[inline]
pub fn ring_all_if<S: Store>(store: &S, bell: At, ready: impl FnOnce() -> bool) {
    fence(Ordering::SeqCst);
    let word = store.word(bell);
    if word.load() & SLEEPERS != 0 && ready() {
        wake(word, EVERYONE);
    }
}

#[cold]
fn wake(word: &impl Word, count: u32) {
    if word.wake(count) < count as usize {
        let cleared = word.update(|now| (now & SLEEPERS != 0).then_some(next_turn(now)));
        if cleared.is_ok() {
            word.wake(EVERYONE);
        }
    }
}

/// The next turn, with nobody asleep.
fn next_turn(now: u64) -> u64 {
    (now & !SLEEPERS).wrapping_add(1) & (SLEEPERS - 1)
}

/// Sleeps until `look` finds something; `None` when the time was over, `EINTR` on a signal.
///
/// `slice` is called whenever a piece of the wait is over: time to look for the dead. Its error
/// ends the wait: who runs handlers of signals says `EINTR`, so that one that came just before the
/// sleep does not have to wait for what the sleep is for.
pub fn wait<S: Store, T>(
    store: &S,
    bell: At,
    timeout: Option<Duration>,
    mut look: impl FnMut() -> Option<T>,
    mut slice: impl FnMut() -> nix::Result<()>,
) -> nix::Result<Option<T>> {
    let word = store.word(bell);
    let mut sleeper = Sleeper::new(timeout, Pace::watchful());
    loop {
        let before = match word.update(|now| Some(now | SLEEPERS)) {
            Ok(before) | Err(before) => before,
        };
        fence(Ordering::SeqCst);
        let found = look();
        if found.is_some() {
            return Ok(found);
        }
        match sleeper.sleep(word, before | SLEEPERS)? {
            Slept::Woken => {}
            Slept::Slice => slice()?,
            Slept::Deadline => return Ok(None),
        }
    }
}

/// Everything has been done, if only for a moment.
pub fn all_done<S: Store>(store: &S) {
    fence(Ordering::SeqCst);
    let word = store.word(At::Joins);
    if let Ok(before) = word.update(|now| Some(next_turn(now)))
        && before & SLEEPERS != 0
    {
        word.wake(EVERYONE);
    }
}

/// How often everything had been done: the turn of this bell.
pub fn times_done<S: Store>(store: &S) -> u64 {
    store.word(At::Joins).load() & (SLEEPERS - 1)
}
