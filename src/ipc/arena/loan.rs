//! Segments that are lent to processes that are being started: both ends of it.

use std::sync::Arc;

use super::segment::{Kind, Segment};
use super::{STATE, System, install};
use crate::ipc::family::Promise;
use crate::sys::{fork, memory};

/// A segment on its way to a process that is being started. *Process-local*; dropping it in the
/// process that made it ends the wait for the child (see `family`).
#[derive(Debug)]
pub struct Loan {
    segment: Arc<Segment>,
    promises: Vec<Promise>,
    made_in: u32,
}

impl Loan {
    pub fn new(segment: &Arc<Segment>) -> Self {
        let promises = STATE.lock().promise(segment, true);
        Self {
            segment: Arc::clone(segment),
            promises,
            made_in: fork::generation(),
        }
    }

    pub fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }

    /// What the child has to know to keep the promises.
    pub fn promises(&self) -> &[Promise] {
        &self.promises
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        if self.made_in == fork::generation()
            && let Some(table) = self.segment.table()
        {
            for promise in &self.promises {
                table.drop_promise(*promise, &System);
            }
        }
    }
}

/// Maps a segment that was lent to this process, once: later calls find it. Takes `fd` over.
pub fn borrow(id: u128, fd: i32, promises: &[Promise]) -> nix::Result<Arc<Segment>> {
    install();
    let mut state = STATE.lock();
    let segment = match state.find(id) {
        Some(segment) => {
            if segment.fd() != Ok(fd) {
                drop(memory::take_over(fd));
            }
            segment
        }
        None => Arc::new(Segment::adopt(fd, id)?),
    };
    if let Some(table) = segment.table() {
        for promise in promises {
            if !table.keep(*promise, fork::pid()) {
                let again = table.promise(fork::pid(), promise.birth, false, &System);
                again.map(|promise| table.keep(promise, fork::pid()));
            }
        }
    }
    // Whoever borrows a growable one has it for himself, with a descriptor of his own.
    if segment.kind != Kind::Growable {
        let births = promises.iter().map(|promise| promise.birth).collect();
        state.know(&segment, births);
    }
    Ok(segment)
}
