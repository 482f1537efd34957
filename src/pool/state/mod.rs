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
//!
//! Here are the tasks; [`queue`] is their way to the workers, [`workers`] who these are, [`reports`]
//! what they say, [`timers`] what has its time.

mod queue;
mod reports;
mod timers;
mod workers;

use std::any::Any;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use super::jobs::{Owner, Sequence};
use super::message::{Call, Outcome};
use super::shared::{Common, SLOTS};
use crate::ipc::extents::Pool as Extents;

use timers::Timer;
pub use workers::Worker;

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
/// So much room for tasks, in places and in the queue, is kept when there are none.
const PLACES: usize = 1 << 12;
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

#[derive(Debug)]
struct Place {
    generation: u32,
    task: Option<Task>,
}

/// What the thread that serves the book is told. It may be held up for long, by callbacks.
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
    /// There are no tasks at the moment.
    Idle,
    /// An object of the layer above.
    Posted(Box<dyn Any + Send + Sync>),
}

/// What the thread that looks after the workers is told.
#[derive(Debug)]
pub enum Event {
    /// A message of a worker about itself, pickled.
    Notice(i32, Box<[u8]>),
    /// A worker has ended, and all that it sent has been read. Its pid, and what it was at.
    Over(i32, Option<Lost>),
    /// All tasks of a closed pool have ended.
    Drained,
    /// The layer above wants something else to be looked after.
    Change,
}

/// A task that a worker had begun when it ended.
#[derive(Debug)]
pub struct Lost {
    pub task: u64,
    /// Job and number, if it is one of the book.
    pub book: Option<(i64, i64)>,
}

/// What a look at the workers' rings brought.
#[derive(Debug, Default)]
pub struct Gained {
    /// Tasks that have ended.
    pub outcomes: usize,
    /// There is mail.
    pub mail: bool,
    /// There are events.
    pub events: bool,
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
    /// What new places begin with: no number is given twice, though places go.
    generation: u32,
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
    pub events: VecDeque<Event>,
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
            generation: 0,
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
            events: VecDeque::new(),
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
            self.places.push(Place {
                generation: self.generation,
                task: None,
            });
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
        if self.live > 1 {
            self.common.begin();
        }
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
        if self.live == 0 && self.places.len() > PLACES {
            self.give_back();
        }
        task
    }

    /// There are no tasks: once there were many, and they may not come again.
    fn give_back(&mut self) {
        let generations = self.places.iter().map(|place| place.generation);
        self.generation = generations.max().unwrap_or(self.generation);
        self.places = Vec::new();
        self.free = Vec::new();
        self.queue.shrink_to(PLACES);
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
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::ipc::claim;
    use crate::pool::jobs::Cell;
    use crate::pool::shared::{COMMON_EXTENTS, COMMON_TABLE, Lane};

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
        state.attach(0, 0, lane.clone(), Some(nix::unistd::pipe().unwrap()));
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
    fn room_for_many_tasks_is_not_kept_and_no_number_is_given_twice() {
        let mut state = state();
        let many: Vec<u64> = (0..2 * PLACES).map(|_| submit(&mut state, b"")).collect();
        for &task in &many {
            state.remove(task).unwrap();
        }
        assert!(state.places.capacity() <= PLACES && state.free.capacity() <= PLACES);
        for _ in 0..2 * PLACES {
            let task = submit(&mut state, b"");
            assert!(!many.contains(&task));
            state.remove(task).unwrap();
        }
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
