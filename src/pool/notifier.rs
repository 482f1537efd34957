//! Lets one thread sleep until there is something in a queue that a lock of others protects.
//!
//! ```text
//!  who waits                 who has put something in
//!  awaited = true            notify(): word += 1
//!  seen = word                         awaited? wake
//!  queue empty? sleep, unless word is not `seen` any more
//! ```
//!
//! Process-local.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use nix::errno::Errno;

use crate::sys::futex;

/// See the top of this file.
#[derive(Default)]
pub struct Notifier {
    word: AtomicU64,
    awaited: AtomicBool,
}

impl Notifier {
    /// Something is in the queue.
    pub fn notify(&self) {
        self.word.fetch_add(1, Ordering::SeqCst);
        if self.awaited.load(Ordering::SeqCst) {
            futex::wake(&self.word, 1);
        }
    }

    /// Sleeps until there may be something: `Ok(false)` when the time is over, `EINTR` after a
    /// signal.
    pub fn wait(
        &self,
        is_empty: impl FnOnce() -> bool,
        left: Option<Duration>,
    ) -> nix::Result<bool> {
        self.awaited.store(true, Ordering::SeqCst);
        let seen = self.word.load(Ordering::SeqCst);
        let slept = if is_empty() {
            futex::wait(&self.word, seen as u32, left)
        } else {
            Ok(())
        };
        self.awaited.store(false, Ordering::SeqCst);
        match slept {
            Ok(()) => Ok(true),
            Err(Errno::ETIMEDOUT) => Ok(false),
            Err(errno) => Err(errno),
        }
    }
}
