//! The worker's side: claims tasks, accepts them, reports.
//!
//! ```text
//!  look ──claimed──► accept: lease, then the slot is let go of ──► run ──► finish: may I report? ──► report
//!   │ nothing                                                               │ no: condemned, the end
//!   ▼
//!  sleep on the own bed until a task, the order to leave, or a signal
//! ```
//!
//! At every instant the ring or the lease names the worker for what it has, so that the pool knows
//! what becomes of it when the worker is killed there. Process-local; a child that a task forks
//! must not use it.

use std::os::fd::{BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use super::shared::{
    COMMON_EXTENTS, COMMON_TABLE, Common, LANE_EXTENTS, LANE_TABLE, Lane, SLOT, TaskHead, WANTS_ACK,
};
use crate::ipc::bell::{self, CALLER, ENGINE};
use crate::ipc::extents::{Pool as Extents, Receiver};
use crate::ipc::spin::{self, Spinner};
use crate::ipc::{claim, lease, ring, sleepers};
use crate::sys::{clock, cpu, futex, reactor};

/// What a look at the ring gave.
#[derive(Debug, PartialEq, Eq)]
pub enum Look {
    /// The task at this position is ours.
    Claimed(u64),
    Nothing,
    /// No more tasks for this worker. (If it has claimed one, that goes back when it has exited.)
    Leave,
}

/// See the top of this file.
#[derive(Debug)]
pub struct Station {
    common: Common,
    lane: Lane,
    index: u16,
    /// What wakes the engine. Open as long as the worker lives.
    kick: RawFd,
    /// Extents of tasks, and of results.
    pub tasks: Arc<Receiver>,
    pub results: Arc<Extents>,
    spinner: Spinner,
}

impl Station {
    pub fn new(common: Common, lane: Lane, index: u16, kick: RawFd) -> Self {
        let tasks = Receiver::new(
            common.segment().clone(),
            COMMON_TABLE,
            COMMON_EXTENTS,
            u32::from(index),
        );
        let results = Extents::new(
            lane.segment().clone(),
            LANE_TABLE,
            LANE_EXTENTS,
            Lane::extents_start(),
        );
        Self {
            common,
            lane,
            index,
            kick,
            tasks: Arc::new(tasks),
            results: Arc::new(results),
            spinner: Spinner::default(),
        }
    }

    /// The task whose soft limit has passed.
    pub fn soft(&self) -> u64 {
        self.lane.soft().load(Ordering::SeqCst)
    }

    pub fn look(&self) -> Look {
        if self.lane.retire().load(Ordering::Relaxed) != 0 {
            return Look::Leave;
        }
        let claimed = claim::claim(&self.common, self.index);
        // The pool looks for claims after it has told us to retire, and we the other way round.
        fence(Ordering::SeqCst);
        if self.lane.retire().load(Ordering::SeqCst) != 0 {
            return Look::Leave;
        }
        match claimed {
            Some(position) => Look::Claimed(position),
            None if self.common.exit().load(Ordering::SeqCst) != 0 => Look::Leave,
            None => Look::Nothing,
        }
    }

    /// Looks on for a moment, where that has paid lately.
    pub fn spin(&self) -> Look {
        let look = || match self.look() {
            Look::Nothing => None,
            other => Some(other),
        };
        let found = self.spinner.spin(spin::ANSWER, cpu::many_cpus, look);
        found.unwrap_or(Look::Nothing)
    }

    /// Sleeps until there is a reason to look again; `EINTR` after a signal.
    pub fn sleep(&self) -> nix::Result<Look> {
        let worker = usize::from(self.index);
        sleepers::enter(&self.common, worker);
        let look = self.look();
        let slept = if look == Look::Nothing {
            futex::wait(sleepers::Beds::word(&self.common, worker), 0, None)
        } else {
            Ok(())
        };
        if sleepers::leave(&self.common, worker) && (look != Look::Nothing || slept.is_err()) {
            self.pass_on();
        }
        slept.map(|()| look)
    }

    /// A wake-up that somebody else should have, if there is work for it. Also before leaving.
    pub fn pass_on(&self) {
        if !claim::is_empty(&self.common)
            && let Some(other) = sleepers::take(&self.common)
        {
            futex::wake(sleepers::Beds::word(&self.common, other), 1);
        }
    }

    /// Takes the task at a position that has been claimed, and says so if the pool wants to know.
    pub fn accept(&self, position: u64, into: &mut [u8; SLOT]) -> TaskHead {
        let head = self.common.read_slot(position, into);
        let wants_ack = head.flags & WANTS_ACK != 0;
        if wants_ack {
            let now = clock::now().as_nanos() as u64;
            self.lane.accepted_at().store(now, Ordering::Release);
        }
        lease::accept(self.lane.lease(), head.task);
        claim::release(&self.common, position, self.index);
        head
    }

    /// When the last task that wanted to be acknowledged was accepted, seconds.
    pub fn accepted_at(&self) -> f64 {
        self.lane.accepted_at().load(Ordering::Relaxed) as f64 * 1e-9
    }

    /// May the outcome of the task be reported? If not, it has been decided otherwise, and this
    /// process is about to be ended.
    pub fn finish(&self, task: u64) -> bool {
        lease::finish(self.lane.lease(), task)
    }

    /// Whether [`finish`](Self::finish) has said so for this task before.
    pub fn is_finished(&self, task: u64) -> bool {
        lease::is_finished(self.lane.lease(), task)
    }

    /// Whether a record of so many bytes can be sent at all.
    pub const fn fits(len: usize) -> bool {
        len <= ring::longest(super::shared::RING) / 2
    }

    /// Sends a record; false if there is no room.
    pub fn try_report(&self, tag: u32, parts: &[&[u8]]) -> bool {
        if !ring::push(&self.lane, tag, parts) {
            return false;
        }
        bell::ring(self.common.bell(), |bits| {
            let mut reached = 0;
            if bits & CALLER != 0 && futex::wake(self.common.bell(), 1) > 0 {
                reached |= CALLER;
            }
            if bits & ENGINE != 0 {
                reactor::kick(self.kick_source());
                reached |= ENGINE;
            }
            reached
        });
        true
    }

    fn kick_source(&self) -> BorrowedFd<'_> {
        reactor::borrow(self.kick)
    }

    /// Sends a record, or sleeps until there may be room (false); `EINTR` after a signal.
    pub fn report_or_sleep(&self, tag: u32, parts: &[&[u8]]) -> nix::Result<bool> {
        let room = self.lane.room();
        room.store(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        if self.try_report(tag, parts) {
            room.store(0, Ordering::SeqCst);
            return Ok(true);
        }
        futex::wait(room, 1, None)?;
        Ok(false)
    }

    /// Sleeps until the pool has read what was sent, which gives extents back; a moment at most.
    pub fn wait_for_reader(&self) -> nix::Result<()> {
        let room = self.lane.room();
        room.store(1, Ordering::SeqCst);
        match futex::wait(room, 1, Some(std::time::Duration::from_millis(10))) {
            Err(nix::errno::Errno::ETIMEDOUT) => Ok(()),
            other => other,
        }
    }
}
