//! Tasks on their way to workers: in, back out, and around.

use std::cmp::Reverse;
use std::sync::atomic::{Ordering, fence};

use super::timers::{Alarm, Timer};
use super::{Cancelled, Gained, STUCK_AFTER, State, Task};
use crate::ipc::claim::{self, PARENT};
use crate::ipc::{lease, sleepers};
use crate::pool::jobs::Owner;
use crate::pool::message::Call;
use crate::pool::shared::{SLOTS, TaskHead, WANTS_ACK};
use crate::sys::io::Source;
use crate::sys::{clock, futex};

impl State {
    /// Takes a task. Its number, or the task back if none is wanted.
    pub fn submit(
        &mut self,
        owner: Owner,
        call: Call,
        limits: (f64, f64),
        gained: &mut Gained,
    ) -> Result<u64, Owner> {
        if self.refusing {
            return Err(owner);
        }
        let (soft, hard) = limits;
        let number = self.insert(Task {
            owner,
            call,
            soft,
            hard,
            deaths: 0,
            position: None,
        });
        if !self.queue.is_empty() || !self.post(number, gained) {
            self.queue.push_back(number);
        }
        Ok(number)
    }

    /// As [`submit`](Self::submit), for a call that fits into a slot: it is copied only if it has
    /// to wait.
    pub fn submit_inline(
        &mut self,
        owner: Owner,
        flags: u16,
        func: &[u8],
        body: &[u8],
        gained: &mut Gained,
    ) -> Result<u64, Owner> {
        if self.refusing {
            return Err(owner);
        }
        let position = self.next;
        let direct = self.queue.is_empty() && claim::is_free(&self.common, position);
        let call = if direct {
            Call::Posted
        } else {
            Call::Inline {
                flags,
                func: func.len() as u16,
                bytes: [func, body].concat().into(),
            }
        };
        let number = self.insert(Task {
            owner,
            call,
            soft: 0.0,
            hard: 0.0,
            deaths: 0,
            position: None,
        });
        if direct {
            let head = TaskHead {
                task: number,
                flags,
                func: func.len() as u16,
                body: body.len() as u32,
            };
            self.common.write_slot(position, &head, [func, body]);
            self.publish(number, gained);
        } else {
            self.queue.push_back(number);
        }
        Ok(number)
    }

    /// Writes a task into the next slot; false if there is no room.
    pub(super) fn post(&mut self, number: u64, gained: &mut Gained) -> bool {
        let position = self.next;
        if self.terminated || !claim::is_free(&self.common, position) {
            return false;
        }
        let place = self.places.get_mut(number as u32 as usize);
        let place = place.filter(|place| u64::from(place.generation) == number >> 32);
        let Some(task) = place.and_then(|place| place.task.as_mut()) else {
            return true;
        };
        if let Call::Heap(bytes) = &task.call {
            let Ok(Some(mut extent)) = self.extents.allocate(bytes.len()) else {
                return false;
            };
            if extent.write(0, Source::from(&bytes[..])).is_err() {
                return false;
            }
            task.call = Call::Extent(extent.into_index(), bytes.len());
        }
        let wants_ack = matches!(task.owner, Owner::Book(..));
        let mut room = [0; 4];
        if let Some((mut head, bytes)) = task.call.slot(number, &mut room) {
            head.flags |= if wants_ack { WANTS_ACK } else { 0 };
            self.common.write_slot(position, &head, [bytes, &[]]);
        }
        if matches!(task.call, Call::Inline { .. }) {
            task.call = Call::Posted;
        }
        self.publish(number, gained);
        true
    }

    pub(super) fn publish(&mut self, number: u64, gained: &mut Gained) {
        let position = self.next;
        self.next += 1;
        self.posted[position as usize % SLOTS] = number;
        if let Some(task) = self.task(number) {
            task.position = Some(position);
        }
        claim::publish(&self.common, position);
        let woken = sleepers::take(&self.common);
        gained.wake.extend(woken);
        if woken.is_some() {
            self.watch_the_woken(gained);
        }
    }

    /// Has the engine look, some time later, whether a wake-up has come to nothing.
    pub(super) fn watch_the_woken(&mut self, gained: &mut Gained) {
        if !std::mem::replace(&mut self.watching, true) {
            let due = clock::now() + STUCK_AFTER;
            gained.timer |= self.next_timer().is_none_or(|first| due < first);
            self.timers.push(Reverse(Timer(due, Alarm::Stuck)));
        }
    }

    /// Wakes another worker if a task still waits and one sleeps.
    pub(super) fn help_the_stuck(&mut self) {
        self.watching = false;
        if !claim::is_empty(&self.common)
            && let Some(worker) = sleepers::take(&self.common)
        {
            futex::wake(sleepers::Beds::word(&self.common, worker), 1);
            self.watch_the_woken(&mut Gained::default());
        }
    }

    /// Moves what waits into the ring.
    pub fn refill(&mut self, gained: &mut Gained) {
        while let Some(&number) = self.queue.front() {
            if !self.post(number, gained) {
                break;
            }
            self.queue.pop_front();
        }
        if let Some((tasks, bytes)) = self.wants_room
            && self.has_room(tasks, bytes)
        {
            self.wants_room = None;
            gained.room = true;
        }
    }

    /// Do at most so many tasks wait, and are calls of at most so many bytes under way? One large
    /// call for each worker and another that is ready are never too much.
    pub fn has_room(&self, tasks: usize, bytes: usize) -> bool {
        let enough = self.workers.iter().flatten().count() + 1;
        self.queue.len() <= tasks && (self.bytes <= bytes || self.large < enough)
    }

    /// Tasks that have not been claimed.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Takes every task back that no worker has claimed: their owners.
    pub fn withdraw_all(&mut self) -> Vec<Owner> {
        let mut owners = Vec::new();
        for position in self.window() {
            if claim::withdraw(&self.common, position) {
                claim::release(&self.common, position, PARENT);
                let number = self.posted[position as usize % SLOTS];
                owners.extend(self.remove(number).map(|task| task.owner));
            }
        }
        while let Some(number) = self.queue.pop_front() {
            owners.extend(self.remove(number).map(|task| task.owner));
        }
        owners
    }

    /// All tasks, whatever their state; nobody will tell their owners anything else.
    pub fn abandon_all(&mut self) -> Vec<Owner> {
        self.queue.clear();
        let numbers: Vec<u64> = (0..self.places.len() as u32)
            .map(|index| self.number(index))
            .collect();
        numbers
            .into_iter()
            .filter_map(|number| self.remove(number))
            .map(|task| task.owner)
            .collect()
    }

    /// The positions that may be in use.
    pub(super) fn window(&self) -> std::ops::Range<u64> {
        self.next.saturating_sub(SLOTS as u64)..self.next
    }

    /// Ends a task before it has an outcome of its own. The owner is for the caller to tell.
    pub fn cancel(&mut self, number: u64) -> (Cancelled, Option<Owner>) {
        let Some(task) = self.task(number) else {
            return (Cancelled::TooLate, None);
        };
        let position = task.position;
        let Some(position) = position else {
            if let Some(at) = self.queue.iter().position(|&other| other == number) {
                self.queue.remove(at);
            }
            let task = self.remove(number);
            return (Cancelled::Withdrawn, task.map(|task| task.owner));
        };
        if claim::withdraw(&self.common, position) {
            claim::release(&self.common, position, PARENT);
            let task = self.remove(number);
            return (Cancelled::Withdrawn, task.map(|task| task.owner));
        }
        // A worker has claimed it. Until the lease says so there is nothing to condemn; that is
        // an instant, unless the worker is stopped in it: then it is ended as it would be after.
        let claimer = claim::claimer(&self.common, position).map(usize::from);
        let index = match claimer.filter(|&index| self.still_claims(index, position)) {
            Some(index) => Some(index),
            None => (0..self.workers.len())
                .find(|&index| self.condemn(index, number) || self.is_condemned(index, number)),
        };
        let Some(index) = index else {
            return (Cancelled::TooLate, None);
        };
        self.end(index, libc::SIGTERM);
        let task = self.remove(number);
        (Cancelled::Condemned, task.map(|task| task.owner))
    }

    /// Whether a worker that was seen to claim a position does so after it was told to take no
    /// other: then whatever ends it now hits no other task. If not, it may go on.
    pub(super) fn still_claims(&mut self, index: usize, position: u64) -> bool {
        let Some(worker) = self.worker(index) else {
            return false;
        };
        let retire = worker.lane.retire();
        let before = retire.swap(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let still = claim::claimer(&self.common, position) == Some(index as u16);
        if !still {
            // Perhaps it is leaving already. Then there will be another.
            retire.store(before, Ordering::SeqCst);
        }
        still
    }

    pub(super) fn condemn(&self, index: usize, number: u64) -> bool {
        self.worker(index)
            .is_some_and(|worker| lease::condemn(worker.lane.lease(), number))
    }

    /// Whether a worker was told to end this task, by a signal that it may not have heeded.
    pub(super) fn is_condemned(&self, index: usize, number: u64) -> bool {
        self.worker(index)
            .is_some_and(|worker| lease::is_condemned(worker.lane.lease(), number))
    }
}
