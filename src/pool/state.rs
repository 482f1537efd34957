//! What a pool knows of its tasks and workers.
//!
//! A task is in one place at a time:
//!
//! ```text
//!  submit ──► queue ──► ring ──claim──► a worker ──its record is read──► gone, its owner has the outcome
//!     └── ring has room ──▲ ▲              │ dies
//!                         │ └─ not begun ──┤
//!                         │                └─ begun: lost, the owner is told by the layer above
//!      queue, in front ◄──┘
//! ```
//!
//! Whether it was begun is what the worker's lease says. All of this is process-local and behind
//! the lock of [`super::hub`].

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use super::jobs::{Owner, Sequence};
use super::message::{Body, Call, Outcome, record};
use super::shared::{Common, Lane, SLOTS, WANTS_ACK};
use crate::ipc::claim::{self, PARENT};
use crate::ipc::extents::{Pool as Extents, Receiver};
use crate::ipc::lease::{self, Phase};
use crate::ipc::{ring, sleepers};
use crate::sys::io::Source;
use crate::sys::{clock, futex, pidfd};

/// After so many deaths between its claim and its acceptance a task is taken to be their cause.
const DEADLY: u8 = 5;
/// Seconds between SIGTERM and SIGKILL for a worker over its hard limit.
const KILL_AFTER: Duration = Duration::from_millis(100);
/// A worker that was woken has begun to look after so long, unless it is stopped.
const STUCK_AFTER: Duration = Duration::from_millis(50);
/// So many timers are no burden.
const TIMERS: usize = 1024;
/// The number of the pool's process among the holders of a lane's extents.
const POOL: u32 = 0;
/// Views that the pool's process may hold on the memory of one worker. What comes then is copied.
const VIEWS: usize = super::shared::LANE_EXTENTS / 2;
/// The numbers of tasks begin with a generation of so many bits, so that a lease has room for a
/// phase beside them.
const GENERATIONS: u32 = (1 << 29) - 1;

/// A task that has no outcome yet.
#[derive(Debug)]
pub struct Task {
    pub owner: Owner,
    pub call: Call,
    /// Seconds from its acceptance; zero: no limit.
    pub soft: f64,
    pub hard: f64,
    deaths: u8,
    /// Where in the ring, while `call` is `Posted` or in an extent.
    position: Option<u64>,
}

#[derive(Debug, Default)]
struct Place {
    generation: u32,
    task: Option<Task>,
}

/// A worker as the pool sees it.
#[derive(Debug)]
pub struct Worker {
    pub pid: i32,
    pub lane: Lane,
    /// Becomes readable when the process ends; a pidfd where there are pidfds.
    pub sentinel: OwnedFd,
    extents: Arc<Receiver>,
    /// Distinguishes it from the next that gets its index.
    serial: u64,
    /// It has broken the format of its ring, or is over its limit: nothing of it is read.
    pub broken: bool,
}

impl Worker {
    /// Sends a signal; to its whole group if it leads one and `signal` ends it.
    pub fn signal(&self, signal: i32) {
        let ends = signal == libc::SIGTERM || signal == libc::SIGKILL;
        if ends && crate::sys::reactor::signal_group(self.pid, signal) {
            return;
        }
        if pidfd::supported() {
            let _ = pidfd::send_signal(self.sentinel.as_raw_fd(), signal);
        } else {
            let pid = nix::unistd::Pid::from_raw(self.pid);
            let signal = nix::sys::signal::Signal::try_from(signal).ok();
            let _ = nix::sys::signal::kill(pid, signal);
        }
    }
}

/// What the thread that serves the book is told.
#[derive(Debug)]
pub enum Mail {
    /// Job, number in it, when (seconds), by which pid.
    Ack(i64, i64, f64, i32),
    Ready(i64, i64, Outcome),
    /// A message of a worker, pickled.
    Other(i32, Box<[u8]>),
    /// Its soft limit has passed, and its worker has been told.
    Soft(i64, i64),
    /// Its hard limit has passed: it is over, and its worker is being ended.
    Hard(i64, i64, f64),
    /// A worker has ended, and all that it sent has been read. Its pid, and what it was at.
    Over(i32, Option<Lost>),
    /// All tasks of a closed pool have ended.
    Drained,
    /// There are no tasks at the moment.
    Idle,
    /// Nothing will follow.
    End,
}

/// A task that a worker had begun when it ended.
#[derive(Debug)]
pub struct Lost {
    pub task: u64,
    /// Job and number, if it is one of the book.
    pub book: Option<(i64, i64)>,
}

#[derive(Debug, PartialEq, PartialOrd)]
enum Alarm {
    Soft(u64),
    Hard(u64),
    Kill(usize, u64),
    /// Is there a task beside a sleeping worker? The one that was woken for it may have been stopped.
    Stuck,
}

/// When, in a total order (times are finite), and what.
#[derive(Debug, PartialEq, PartialOrd)]
struct Timer(Duration, Alarm);

impl Eq for Timer {}

#[allow(clippy::derive_ord_xor_partial_ord)] // nothing here is partial: whole numbers throughout
impl Ord for Timer {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.partial_cmp(other).unwrap_or(std::cmp::Ordering::Equal)
    }
}

/// What a look at the workers' rings brought.
#[derive(Debug, Default)]
pub struct Gained {
    /// Tasks that have ended.
    pub outcomes: usize,
    /// There is mail.
    pub mail: bool,
    /// There is a timer earlier than all before.
    pub timer: bool,
    /// Workers to wake, whose beds have been taken.
    pub wake: Vec<usize>,
    /// The queue has become short enough for who waits for that.
    pub room: bool,
    /// A closed pool has nothing left to do.
    pub drained: bool,
    /// Sequences that nobody reads any more. What they hold may run Python code when it is dropped,
    /// which must not be here.
    pub unwanted: Vec<Arc<Sequence>>,
}

impl Gained {
    pub fn found_something(&self) -> bool {
        self.outcomes > 0 || self.mail
    }
}

/// What became of the wish to cancel a task.
#[derive(Debug, PartialEq, Eq)]
pub enum Cancelled {
    /// It had not begun, and will not.
    Withdrawn,
    /// It was running; its worker is being ended.
    Condemned,
    /// It has an outcome, or is about to have one.
    TooLate,
}

pub struct State {
    common: Common,
    pub extents: Arc<Extents>,
    places: Vec<Place>,
    free: Vec<u32>,
    /// Tasks without an outcome.
    pub live: usize,
    /// Outcomes since somebody last asked.
    pub ended: u64,
    queue: VecDeque<u64>,
    /// Bytes of calls that do not fit into slots, wherever they are, and how many such calls.
    bytes: usize,
    large: usize,
    /// The next position of the ring to be written.
    next: u64,
    /// Which task is in which slot. As in the queue, the whole number: a task may be forgotten
    /// while it is there, and its place be another's.
    posted: Box<[u64]>,
    pub workers: Vec<Option<Worker>>,
    /// Indexes of workers that are about to be started.
    reserved: Vec<usize>,
    serial: u64,
    timers: BinaryHeap<Reverse<Timer>>,
    /// There is a timer for the last wake-ups.
    watching: bool,
    /// When there are so many, those of tasks that have ended are thrown away.
    timers_kept: usize,
    pub mail: VecDeque<Mail>,
    /// New workers and their sentinels, for the engine to watch.
    pub unwatched: Vec<(usize, OwnedFd)>,
    /// No more tasks will be submitted.
    pub closed: bool,
    /// And all of them have ended, which the book has been told.
    pub drained: bool,
    /// No more tasks are wanted; what is submitted all the same is given back.
    pub refusing: bool,
    /// Nothing is handed out any more.
    pub terminated: bool,
    /// Somebody waits for the queue to become as short as this (tasks, bytes).
    pub wants_room: Option<(usize, usize)>,
}

impl State {
    pub fn new(common: Common, extents: Arc<Extents>) -> Self {
        Self {
            common,
            extents,
            places: Vec::new(),
            free: Vec::new(),
            live: 0,
            ended: 0,
            queue: VecDeque::new(),
            bytes: 0,
            large: 0,
            next: 0,
            posted: vec![0; SLOTS].into_boxed_slice(),
            workers: Vec::new(),
            reserved: Vec::new(),
            serial: 0,
            timers: BinaryHeap::new(),
            watching: false,
            timers_kept: TIMERS,
            mail: VecDeque::new(),
            unwatched: Vec::new(),
            closed: false,
            drained: false,
            refusing: false,
            terminated: false,
            wants_room: None,
        }
    }

    // ---- tasks ----

    fn insert(&mut self, task: Task) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place::default());
            (self.places.len() - 1) as u32
        });
        if let size @ 1.. = task.call.large() {
            self.bytes += size;
            self.large += 1;
        }
        let place = &mut self.places[index as usize];
        // From 1 on, so that no task has the number 0.
        place.generation = place.generation % GENERATIONS + 1;
        place.task = Some(task);
        self.live += 1;
        u64::from(place.generation) << 32 | u64::from(index)
    }

    fn number(&self, index: u32) -> u64 {
        u64::from(self.places[index as usize].generation) << 32 | u64::from(index)
    }

    fn knows(&self, number: u64) -> bool {
        let place = self.places.get(number as u32 as usize);
        place.is_some_and(|p| u64::from(p.generation) == number >> 32 && p.task.is_some())
    }

    pub fn task(&mut self, number: u64) -> Option<&mut Task> {
        let place = self.places.get_mut(number as u32 as usize)?;
        if u64::from(place.generation) == number >> 32 {
            place.task.as_mut()
        } else {
            None
        }
    }

    /// The task has an outcome: forget it.
    pub fn remove(&mut self, number: u64) -> Option<Task> {
        self.task(number)?;
        let index = number as u32;
        let task = self.places[index as usize].task.take();
        if let Some(call) = task.as_ref().map(|task| &task.call)
            && let size @ 1.. = call.large()
        {
            self.bytes -= size;
            self.large -= 1;
            if let Call::Extent(reference, _) = call {
                // Of no effect if a worker has taken it.
                self.extents.discard(*reference);
            }
        }
        self.free.push(index);
        self.live -= 1;
        self.ended += 1;
        task
    }

    /// The numbers of all tasks of a job of the book (of all its tasks, or of one).
    pub fn of_job(&self, job: i64, i: Option<i64>) -> Vec<u64> {
        let places = (0..).zip(&self.places);
        let is_it = |owner: &Owner| matches!(*owner, Owner::Book(j, k) if j == job && i.is_none_or(|i| i == k));
        places
            .filter(|(_, place)| place.task.as_ref().is_some_and(|t| is_it(&t.owner)))
            .map(|(index, _)| self.number(index))
            .collect()
    }

    /// The numbers of all tasks that are not the book's.
    pub fn of_callers(&self) -> Vec<u64> {
        let is_it = |place: &Place| {
            let owner = place.task.as_ref().map(|task| &task.owner);
            matches!(owner, Some(Owner::Cell(_) | Owner::Item(..)))
        };
        (0..)
            .zip(&self.places)
            .filter(|(_, place)| is_it(place))
            .map(|(index, _)| self.number(index))
            .collect()
    }

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
            let head = super::shared::TaskHead {
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
    fn post(&mut self, number: u64, gained: &mut Gained) -> bool {
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

    fn publish(&mut self, number: u64, gained: &mut Gained) {
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
    fn watch_the_woken(&mut self, gained: &mut Gained) {
        if !std::mem::replace(&mut self.watching, true) {
            let due = clock::now() + STUCK_AFTER;
            gained.timer |= self.next_timer().is_none_or(|first| due < first);
            self.timers.push(Reverse(Timer(due, Alarm::Stuck)));
        }
    }

    /// Wakes another worker if a task still waits and one sleeps.
    fn help_the_stuck(&mut self) {
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
    fn window(&self) -> std::ops::Range<u64> {
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
            None => (0..self.workers.len()).find(|&index| self.condemn(index, number)),
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
    fn still_claims(&mut self, index: usize, position: u64) -> bool {
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

    fn condemn(&self, index: usize, number: u64) -> bool {
        self.worker(index)
            .is_some_and(|worker| lease::condemn(worker.lane.lease(), number))
    }

    // ---- workers ----

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

    /// A worker has been started; the engine has to be told (`watch` is a copy of its sentinel).
    pub fn attach(
        &mut self,
        index: usize,
        pid: i32,
        lane: Lane,
        sentinel: OwnedFd,
        watch: OwnedFd,
    ) {
        self.serial += 1;
        self.release(index);
        self.unwatched.push((index, watch));
        let extents = Receiver::new(
            lane.segment().clone(),
            super::shared::LANE_TABLE,
            super::shared::LANE_EXTENTS,
            POOL,
        );
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

    fn end(&mut self, index: usize, signal: i32) {
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

    // ---- what workers report ----

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

    fn drain_one(&mut self, index: usize, gained: &mut Gained) {
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
    fn receive(
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

    fn acknowledged(&mut self, number: u64, pid: i32, lane: &Lane, gained: &mut Gained) {
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

    // ---- time ----

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

    fn warn(&mut self, number: u64) -> bool {
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

    fn stop(&mut self, number: u64) -> bool {
        let Some(&mut Task {
            owner: Owner::Book(job, i),
            hard,
            ..
        }) = self.task(number)
        else {
            return false;
        };
        let condemned = |worker: &Option<Worker>| {
            let lease = worker.as_ref().map(|worker| worker.lane.lease());
            lease.is_some_and(|lease| lease::condemn(lease, number))
        };
        let Some(index) = self.workers.iter().position(condemned) else {
            return false;
        };
        self.remove(number);
        self.end(index, libc::SIGTERM);
        self.mail.push_back(Mail::Hard(job, i, hard));
        true
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
        self.mail.push_back(Mail::Over(worker.pid, lost));
        gained.mail = true;
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
    fn take_back(&mut self, number: u64, position: u64, left: bool) -> bool {
        let mut bytes = [0; super::shared::SLOT];
        let head = self.common.read_slot(position, &mut bytes);
        let Some(task) = self.task(number) else {
            return true;
        };
        task.deaths += u8::from(!left);
        task.position = None;
        if matches!(task.call, Call::Posted) {
            let from = super::shared::TaskHead::SIZE;
            task.call = Call::Inline {
                flags: head.flags,
                func: head.func,
                bytes: bytes[from..from + head.payload()].into(),
            };
        }
        task.deaths < DEADLY
    }

    /// Its worker has died. One of the book is forgotten, others wait for what the layer above says.
    fn lose(&mut self, number: u64) -> Option<Lost> {
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

#[cfg(test)]
mod tests {
    use super::super::jobs::Cell;
    use super::*;
    use crate::pool::shared::{COMMON_EXTENTS, COMMON_TABLE};

    fn state() -> State {
        let common = Common::create().unwrap();
        let (segment, start) = (common.segment().clone(), Common::extents_start());
        let extents = Extents::new(segment, COMMON_TABLE, COMMON_EXTENTS, start);
        State::new(common, Arc::new(extents))
    }

    fn submit(state: &mut State, name: &[u8]) -> u64 {
        let owner = Owner::Cell(Arc::new(Cell::default()));
        let submitted = state.submit_inline(owner, 0, name, b"", &mut Gained::default());
        submitted.unwrap()
    }

    /// A worker that is never signalled: this process, which is not in its own group's lead.
    fn attach(state: &mut State) -> Lane {
        let lane = Lane::create().unwrap();
        let (sentinel, watch) = nix::unistd::pipe().unwrap();
        state.attach(0, 0, lane.clone(), sentinel, watch);
        lane
    }

    #[test]
    fn a_task_that_was_forgotten_while_a_worker_claimed_it_is_not_the_next_of_its_place() {
        let mut state = state();
        attach(&mut state);
        let first = submit(&mut state, b"first");
        assert_eq!(claim::claim(&state.common, 0), Some(0));
        state.remove(first);
        let second = submit(&mut state, b"second");
        assert_eq!(first as u32, second as u32, "the same place");
        state.bury(0);
        assert!(state.queue.is_empty());
        assert_eq!(claim::claim(&state.common, 1), Some(1));
        let mut bytes = [0; super::super::shared::SLOT];
        assert_eq!(state.common.read_slot(1, &mut bytes).task, second);
        assert!(claim::is_empty(&state.common), "handed out once");
    }

    #[test]
    fn timers_do_not_outlive_their_tasks_for_long() {
        let mut state = state();
        let lane = attach(&mut state);
        for n in 0..10 * TIMERS as i64 {
            let gained = &mut Gained::default();
            let task = state.submit(Owner::Book(n, -1), Call::Posted, (100.0, 200.0), gained);
            let task = task.unwrap();
            state.acknowledged(task, 1, &lane, gained);
            state.remove(task);
        }
        assert!(state.timers.len() <= 2 * TIMERS);
        assert!(state.next_timer().is_some());
    }

    #[test]
    fn workers_that_leave_with_a_task_have_not_died_of_it() {
        let mut state = state();
        let task = submit(&mut state, b"");
        for position in 0..u64::from(DEADLY) + 1 {
            let lane = attach(&mut state);
            assert_eq!(claim::claim(&state.common, 0), Some(position));
            lane.retire().store(1, Ordering::SeqCst);
            state.bury(0);
            assert!(state.task(task).is_some());
        }
    }

    #[test]
    fn a_task_that_was_forgotten_in_the_queue_is_not_the_next_of_its_place() {
        let mut state = state();
        for _ in 0..SLOTS {
            submit(&mut state, b"");
        }
        let first = submit(&mut state, b"first");
        state.remove(first);
        let second = submit(&mut state, b"second");
        assert_eq!(first as u32, second as u32, "the same place");
        for position in 0..SLOTS as u64 {
            assert_eq!(claim::claim(&state.common, 1), Some(position));
            claim::release(&state.common, position, 1);
        }
        state.refill(&mut Gained::default());
        assert_eq!(state.waiting(), 0);
        assert!(claim::claim(&state.common, 1).is_some());
        assert!(claim::is_empty(&state.common), "handed out once");
    }
}
