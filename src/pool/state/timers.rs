//! Limits, and what else has its time.

use std::cmp::Reverse;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Mail, State, Task};
use crate::pool::jobs::Owner;

#[derive(Debug, PartialEq, PartialOrd)]
pub(super) enum Alarm {
    Soft(u64),
    Hard(u64),
    Kill(usize, u64),
    /// Is there a task beside a sleeping worker? The one that was woken for it may have been stopped.
    Stuck,
}

/// When, in a total order (times are finite), and what.
#[derive(Debug, PartialEq, PartialOrd)]
pub(super) struct Timer(pub(super) Duration, pub(super) Alarm);

impl Eq for Timer {}

#[allow(clippy::derive_ord_xor_partial_ord)] // nothing here is partial: whole numbers throughout
impl Ord for Timer {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.partial_cmp(other).unwrap_or(std::cmp::Ordering::Equal)
    }
}

impl State {
    /// When the next timer is due.
    pub fn next_timer(&self) -> Option<Duration> {
        self.timers.peek().map(|Reverse(timer)| timer.0)
    }

    /// Does what is due; whether there is mail now.
    pub fn tick(&mut self, now: Duration) -> bool {
        let mut mail = false;
        while self.timers.peek().is_some_and(|Reverse(t)| t.0 <= now) {
            let Some(Reverse(Timer(_, alarm))) = self.timers.pop() else {
                break;
            };
            match alarm {
                Alarm::Soft(number) => mail |= self.warn(number),
                Alarm::Hard(number) => mail |= self.stop(number),
                Alarm::Stuck => self.help_the_stuck(),
                Alarm::Kill(index, serial) => {
                    if let Some(worker) = self.worker(index)
                        && worker.serial == serial
                    {
                        worker.signal(libc::SIGKILL);
                    }
                }
            }
        }
        mail
    }

    pub(super) fn warn(&mut self, number: u64) -> bool {
        let Some(&mut Task {
            owner: Owner::Book(job, i),
            ..
        }) = self.task(number)
        else {
            return false;
        };
        let Some(worker) = self.runner(number) else {
            return false;
        };
        // First the word: the handler of a signal without it does nothing.
        worker.lane.soft().store(number, Ordering::SeqCst);
        worker.signal(libc::SIGUSR1);
        self.mail.push_back(Mail::Soft(job, i));
        true
    }

    pub(super) fn stop(&mut self, number: u64) -> bool {
        let Some(&mut Task {
            owner: Owner::Book(job, i),
            hard,
            ..
        }) = self.task(number)
        else {
            return false;
        };
        let mut workers = 0..self.workers.len();
        if let Some(index) = workers.clone().find(|&i| self.is_condemned(i, number)) {
            // By `terminate_job`, whose signal has not ended it. It stays a job that was terminated.
            self.end(index, libc::SIGTERM);
            return false;
        }
        let Some(index) = workers.find(|&index| self.condemn(index, number)) else {
            return false;
        };
        self.remove(number);
        self.end(index, libc::SIGTERM);
        self.mail.push_back(Mail::Hard(job, i, hard));
        true
    }
}
