//! Who has branched off from this process since.

use std::sync::Arc;

use nix::errno::Errno;

use super::{Block, STATE, Segment, System, install};

/// A moment in the life of this process, to know later who has branched off since: for memory that
/// is not in the arena, but that a forked child sees all the same. *Process-local*.
#[derive(Debug)]
pub struct Moment {
    pub(super) segment: Arc<Segment>,
    pub(super) epoch: u64,
}

impl Moment {
    pub fn now() -> nix::Result<Self> {
        install();
        let mut known = STATE.lock().moment();
        if known.is_none() {
            let block = Block::new(1)?; // in a segment whose table takes note from now on
            known = STATE.lock().moment();
            drop(block);
        }
        known.ok_or(Errno::ENOMEM)
    }

    /// Whether no living process has branched off since.
    pub fn is_over(&self) -> bool {
        let now = STATE.lock().epoch;
        now == self.epoch
            || self
                .segment
                .table()
                .and_then(|table| table.living(&System))
                .is_some_and(|living| living.cannot_see(self.epoch, now))
    }
}
