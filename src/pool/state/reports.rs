//! What workers report.

use std::cmp::Reverse;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use super::timers::{Alarm, Timer};
use super::{Event, Gained, Mail, State, TIMERS, VIEWS};
use crate::ipc::extents::Receiver;
use crate::ipc::ring;
use crate::pool::jobs::Owner;
use crate::pool::message::{Body, Outcome, record};
use crate::pool::shared::Lane;
use crate::sys::futex;

impl State {
    /// Reads all that the workers have reported.
    pub fn drain(&mut self) -> Gained {
        let mut gained = Gained::default();
        for index in 0..self.workers.len() {
            self.drain_one(index, &mut gained);
        }
        if gained.outcomes > 0 || !self.queue.is_empty() {
            self.refill(&mut gained);
        }
        gained.drained = self.closed && self.live == 0 && !self.drained;
        gained
    }

    /// Has some worker reported something?
    pub fn has_news(&self) -> bool {
        let mut workers = self.workers.iter().flatten();
        workers.any(|worker| !worker.broken && !ring::is_empty(&worker.lane))
    }

    pub(super) fn drain_one(&mut self, index: usize, gained: &mut Gained) {
        let Some(worker) = &self.workers[index] else {
            return;
        };
        if worker.broken || ring::is_empty(&worker.lane) {
            return;
        }
        let (lane, extents, pid) = (worker.lane.clone(), worker.extents.clone(), worker.pid);
        loop {
            let taken = ring::pop(&lane, |tag, bytes| {
                self.receive(tag, bytes, &extents, pid, &lane, gained)
            });
            match taken {
                Ok(Some(true)) => {}
                Ok(None) => break,
                Ok(Some(false)) | Err(ring::Corrupt) => {
                    if let Some(worker) = &mut self.workers[index] {
                        worker.broken = true;
                    }
                    self.end(index, libc::SIGKILL);
                    break;
                }
            }
        }
        // It may wait for the room that there is now.
        fence(Ordering::SeqCst);
        let room = lane.room();
        if room.load(Ordering::SeqCst) != 0 {
            room.store(0, Ordering::SeqCst);
            futex::wake(room, 1);
        }
    }

    /// One record; false if it is nothing that a worker of ours sends.
    pub(super) fn receive(
        &mut self,
        tag: u32,
        bytes: &[u8],
        extents: &Arc<Receiver>,
        pid: i32,
        lane: &Lane,
        gained: &mut Gained,
    ) -> bool {
        if tag == record::OTHER {
            self.mail.push_back(Mail::Other(pid, bytes.into()));
            gained.mail = true;
            return true;
        }
        if tag == record::NOTICE {
            self.events.push_back(Event::Notice(pid, bytes.into()));
            gained.events = true;
            return true;
        }
        let Some((number, bytes)) = bytes.split_first_chunk::<8>() else {
            return false;
        };
        let number = u64::from_le_bytes(*number);
        let (success, body) = match tag {
            record::ACK => {
                self.acknowledged(number, pid, lane, gained);
                return true;
            }
            record::VALUE | record::FAILURE => (tag == record::VALUE, Body::copy(bytes)),
            record::BIG_VALUE | record::BIG_FAILURE => {
                let Some(body) = big(bytes, extents) else {
                    return false;
                };
                (tag == record::BIG_VALUE, body)
            }
            _ => return false,
        };
        if let Some(task) = self.remove(number) {
            gained.outcomes += 1;
            self.deliver(task.owner, Outcome::Sent(success, body), gained);
        }
        true
    }

    /// Gives an owner the outcome of a task that has been removed.
    pub fn deliver(&mut self, owner: Owner, outcome: Outcome, gained: &mut Gained) {
        match owner {
            Owner::Cell(cell) => drop(cell.set(outcome)),
            Owner::Item(sequence, i) => {
                drop(sequence.put(i, outcome));
                // Nobody else wants it: it goes, with all that it holds, without the lock.
                if Arc::strong_count(&sequence) == 1 {
                    gained.unwanted.push(sequence);
                }
            }
            Owner::Book(job, i) => {
                self.mail.push_back(Mail::Ready(job, i, outcome));
                gained.mail = true;
            }
        }
    }

    pub(super) fn acknowledged(&mut self, number: u64, pid: i32, lane: &Lane, gained: &mut Gained) {
        let at = Duration::from_nanos(lane.accepted_at().load(Ordering::Acquire));
        let Some(task) = self.task(number) else {
            return;
        };
        let (soft, hard) = (task.soft, task.hard);
        let Owner::Book(job, i) = task.owner else {
            return;
        };
        self.mail
            .push_back(Mail::Ack(job, i, at.as_secs_f64(), pid));
        gained.mail = true;
        // Most tasks end long before their limits: those timers must not pile up.
        if self.timers.len() >= self.timers_kept {
            let mut timers = std::mem::take(&mut self.timers);
            timers.retain(|Reverse(Timer(_, alarm))| match *alarm {
                Alarm::Soft(number) | Alarm::Hard(number) => self.knows(number),
                Alarm::Kill(..) | Alarm::Stuck => true,
            });
            self.timers_kept = (2 * timers.len()).max(TIMERS);
            self.timers = timers;
        }
        let mut alarm = |limit: f64, alarm| {
            if limit > 0.0 {
                let due = at.saturating_add(Duration::try_from_secs_f64(limit).unwrap_or(FOREVER));
                let first = self.timers.peek().is_none_or(|Reverse(t)| due < t.0);
                gained.timer |= first;
                self.timers.push(Reverse(Timer(due, alarm)));
            }
        };
        alarm(soft, Alarm::Soft(number));
        alarm(hard, Alarm::Hard(number));
    }
}

const FOREVER: Duration = Duration::from_secs(1 << 40);

/// The body that a record names. When many views of the worker's memory are held already, it is
/// copied: they may be held for long, and the worker has to go on.
fn big(bytes: &[u8], extents: &Arc<Receiver>) -> Option<Body> {
    let index = u32::from_le_bytes(bytes.try_into().ok()?);
    let taken = extents.take(index).ok()?;
    Some(if extents.held() > VIEWS {
        Body::Copied(taken.copy_out().ok()?)
    } else {
        Body::Extent(taken)
    })
}
