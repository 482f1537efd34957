//! Workers: told of, sent away, buried.

use std::cmp::Reverse;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use super::timers::{Alarm, Timer};
use super::{DEADLY, Event, Gained, KILL_AFTER, Lost, POOL, State};
use crate::ipc::extents::Receiver;
use crate::ipc::lease::{self, Phase};
use crate::ipc::{claim, sleepers};
use crate::pool::jobs::Owner;
use crate::pool::message::Call;
use crate::pool::shared::{LANE_EXTENTS, LANE_TABLE, Lane, SLOT, SLOTS, TaskHead};
use crate::sys::{clock, futex, pidfd};

/// A worker as the pool sees it.
#[derive(Debug)]
pub struct Worker {
    pub pid: i32,
    pub lane: Lane,
    /// Becomes readable when the process ends; a pidfd where there are pidfds. None: it has ended.
    pub sentinel: Option<OwnedFd>,
    pub(super) extents: Arc<Receiver>,
    /// Distinguishes it from the next that gets its index.
    pub(super) serial: u64,
    /// It has broken the format of its ring, or is over its limit: nothing of it is read.
    pub broken: bool,
}

impl Worker {
    /// Sends a signal; to its whole group if it leads one and `signal` ends it.
    pub fn signal(&self, signal: i32) {
        let Some(sentinel) = &self.sentinel else {
            return;
        };
        let ends = signal == libc::SIGTERM || signal == libc::SIGKILL;
        if ends && crate::sys::reactor::signal_group(self.pid, signal) {
            return;
        }
        if pidfd::supported() {
            let _ = pidfd::send_signal(sentinel.as_raw_fd(), signal);
        } else {
            let pid = nix::unistd::Pid::from_raw(self.pid);
            let signal = nix::sys::signal::Signal::try_from(signal).ok();
            let _ = nix::sys::signal::kill(pid, signal);
        }
    }
}

impl State {
    /// The lowest index that no worker has, for one that is about to be started.
    pub fn reserve(&mut self) -> usize {
        let is_free =
            |index: &usize| self.worker(*index).is_none() && !self.reserved.contains(index);
        let index = (0..).find(is_free).unwrap_or(usize::MAX);
        self.reserved.push(index);
        index
    }

    /// No worker has been started with an index that was reserved, or one has.
    pub fn release(&mut self, index: usize) {
        self.reserved.retain(|&other| other != index);
    }

    /// A worker has been started; the engine has to be told.
    ///
    /// :param sentinels: two copies of its sentinel; none: it has ended already.
    pub fn attach(
        &mut self,
        index: usize,
        pid: i32,
        lane: Lane,
        sentinels: Option<(OwnedFd, OwnedFd)>,
    ) {
        self.serial += 1;
        self.release(index);
        let (sentinel, watch) = sentinels.unzip();
        self.unwatched.extend(watch.map(|watch| (index, watch)));
        let extents = Receiver::new(lane.segment().clone(), LANE_TABLE, LANE_EXTENTS, POOL);
        while self.workers.len() <= index {
            self.workers.push(None);
        }
        self.workers[index] = Some(Worker {
            pid,
            lane,
            sentinel,
            extents: Arc::new(extents),
            serial: self.serial,
            broken: false,
        });
    }

    pub fn worker(&self, index: usize) -> Option<&Worker> {
        self.workers.get(index)?.as_ref()
    }

    /// The task that a worker runs.
    pub fn running(&self, index: usize) -> Option<u64> {
        let lease = lease::read(self.worker(index)?.lane.lease());
        (lease.phase == Phase::Accepted).then_some(lease.task)
    }

    /// Which worker runs a task.
    pub fn runner(&self, number: u64) -> Option<&Worker> {
        let runs = |worker: &&Worker| {
            let lease = lease::read(worker.lane.lease());
            lease.phase != Phase::Idle && lease.task == number
        };
        self.workers.iter().flatten().find(runs)
    }

    /// How many workers are at a task, or are about to be.
    pub fn busy(&self) -> usize {
        self.live.min(self.workers.iter().flatten().count())
    }

    /// Is it at a task, about to be, or not rid of the outcome?
    pub fn is_busy(&self, index: usize) -> bool {
        let Some(worker) = self.worker(index) else {
            return false;
        };
        let lease = lease::read(worker.lane.lease());
        (lease.phase != Phase::Idle && self.knows(lease.task))
            || self
                .window()
                .any(|p| claim::claimer(&self.common, p) == Some(index as u16))
    }

    /// Has a worker take no more tasks; false, and nothing changed, if it is at one.
    pub fn retire(&mut self, index: usize, even_if_busy: bool) -> bool {
        let Some(worker) = self.worker(index) else {
            return false;
        };
        let retire = worker.lane.retire();
        if retire.swap(1, Ordering::SeqCst) == 1 && !even_if_busy {
            return false;
        }
        // Either the worker sees this after its claim, or we see the claim.
        fence(Ordering::SeqCst);
        if !even_if_busy && self.is_busy(index) {
            retire.store(0, Ordering::SeqCst);
            return false;
        }
        // It may be asleep.
        sleepers::forget(&self.common, index);
        let bed = sleepers::Beds::word(&self.common, index);
        bed.store(1, Ordering::SeqCst);
        futex::wake(bed, 1);
        true
    }

    /// Ends the task of a worker before others are told; the worker will take no other. The layer
    /// above sends the signal.
    pub fn condemn_current(&mut self, index: usize) -> bool {
        let Some(task) = self.running(index) else {
            return false;
        };
        self.worker(index)
            .is_some_and(|worker| lease::condemn(worker.lane.lease(), task))
    }

    pub(super) fn end(&mut self, index: usize, signal: i32) {
        let Some(worker) = &self.workers[index] else {
            return;
        };
        worker.lane.retire().store(1, Ordering::SeqCst);
        worker.signal(signal);
        if signal != libc::SIGKILL {
            let alarm = Alarm::Kill(index, worker.serial);
            self.timers
                .push(Reverse(Timer(clock::now() + KILL_AFTER, alarm)));
        }
    }

    // ---- death ----

    /// A worker has ended: what it left behind is read, what it had not begun goes back.
    pub fn bury(&mut self, index: usize) -> Gained {
        let mut gained = Gained::default();
        self.drain_one(index, &mut gained);
        let Some(worker) = self.workers[index].take() else {
            return gained;
        };
        let lease = lease::read(worker.lane.lease());
        // A worker that was told to leave may have claimed a task, and left it as it was.
        let left = worker.lane.retire().load(Ordering::SeqCst) != 0;
        let mut returned = Vec::new();
        let mut deadly = None;
        for position in self.window() {
            if claim::claimer(&self.common, position) != Some(index as u16) {
                continue;
            }
            let number = self.posted[position as usize % SLOTS];
            let begun = lease.task == number && lease.phase != Phase::Idle;
            if !begun && self.task(number).is_some() {
                if self.take_back(number, position, left) {
                    returned.push(number);
                } else {
                    deadly = Some(number);
                }
            }
            claim::release(&self.common, position, index as u16);
        }
        for task in returned.into_iter().rev() {
            self.queue.push_front(task);
        }
        self.extents.reclaim(index as u32);
        let lost = deadly.or((lease.phase != Phase::Idle).then_some(lease.task));
        let lost = lost.and_then(|number| self.lose(number));
        self.events.push_back(Event::Over(worker.pid, lost));
        gained.events = true;
        // It may have been on its way to a task that somebody else has to be woken for now.
        sleepers::forget(&self.common, index);
        self.refill(&mut gained);
        if !claim::is_empty(&self.common) {
            while let Some(other) = sleepers::take(&self.common) {
                gained.wake.push(other);
            }
        }
        gained
    }

    /// A task that was claimed, not begun: its call is still in the slot. False if too many have
    /// died of it; who `left` did not die of it.
    pub(super) fn take_back(&mut self, number: u64, position: u64, left: bool) -> bool {
        let mut bytes = [0; SLOT];
        let head = self.common.read_slot(position, &mut bytes);
        let Some(task) = self.task(number) else {
            return true;
        };
        task.deaths += u8::from(!left);
        task.position = None;
        if matches!(task.call, Call::Posted) {
            let from = TaskHead::SIZE;
            task.call = Call::Inline {
                flags: head.flags,
                func: head.func,
                bytes: bytes[from..from + head.payload()].into(),
            };
        }
        task.deaths < DEADLY
    }

    /// Its worker has died. One of the book is forgotten, others wait for what the layer above says.
    pub(super) fn lose(&mut self, number: u64) -> Option<Lost> {
        let book = match self.task(number)?.owner {
            Owner::Book(job, i) => Some((job, i)),
            _ => None,
        };
        if book.is_some() {
            self.remove(number);
        }
        Some(Lost { task: number, book })
    }
}
