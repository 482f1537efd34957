//! The state of a pool behind its lock, with sleeping and waking.
//!
//! Who looks at the workers' rings:
//!
//! ```text
//!  nobody waits for an outcome         a caller waits
//!  ───────────────────────────         ─────────────────────────────────────────────────────
//!  the engine: the bell's ENGINE bit   the first is the leader: it drains for all, and sleeps on
//!  has workers kick its eventfd        the bell (CALLER). Others sleep on `turn`; the leader wakes
//!                                      them when something has ended, and when it leaves
//! ```
//!
//! While much comes in, nobody sleeps on the bell: leader and engine nap for a moment and look
//! again, and the workers have no one to wake. That is cheaper for both sides, and the processor is
//! theirs meanwhile.
//!
//! No wake-up is lost: who is going to sleep first says so, then looks once more; who has something
//! first leaves it, then looks for sleepers; a fence stands between on both sides.
//!
//! Process-local. A forked child may find the state half changed and its lock held by a thread that
//! it does not have: it must not touch it, and [`Hub::is_ours`] is what its callers ask first. They
//! keep it in a [`fork::Kept`], so that its copy is not even dropped.

use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::time::Duration;

use nix::errno::Errno;

use super::jobs::Owner;
use super::notifier::Notifier;
use super::shared::{COMMON_EXTENTS, COMMON_TABLE, Common};
use super::state::{Event, Gained, Mail, State};
use crate::ipc::bell::{self, CALLER, ENGINE};
use crate::ipc::extents::Pool as Extents;
use crate::ipc::spin::{self, Spinner};
use crate::ipc::{claim, sleepers};
use crate::sys::descriptor::Descriptor;
use crate::sys::mutex::{Mutex, MutexGuard};
use crate::sys::{clock, cpu, fork, futex, reactor};

/// A nap of the leader while outcomes are plenty.
const NAP: Duration = Duration::from_micros(50);
/// After so many in a row it lets its caller look for signals: some milliseconds.
const NAPS: u32 = 200;
/// What makes them plenty: so many since the last look.
pub const PLENTY: usize = 8;

/// See the top of this file.
pub struct Hub {
    owner: u32,
    pub common: Common,
    pub extents: Arc<Extents>,
    state: Mutex<State>,
    kick: Descriptor,
    lead: AtomicBool,
    followers: AtomicU64,
    turn: AtomicU64,
    mail: Notifier,
    events: Notifier,
    /// Goes up when the queue has become short.
    room: AtomicU64,
    stopped: AtomicBool,
    /// How many processors workers and callers may run on.
    cpus: usize,
    spinner: Spinner,
}

impl Hub {
    pub fn new() -> nix::Result<Self> {
        let common = Common::create()?;
        let extents = Arc::new(Extents::new(
            common.segment().clone(),
            COMMON_TABLE,
            COMMON_EXTENTS,
            Common::extents_start(),
        ));
        let state = State::new(common.clone(), extents.clone());
        Ok(Self {
            owner: fork::pid(),
            common,
            extents,
            state: Mutex::new(state),
            kick: Descriptor::new(reactor::new_eventfd()?),
            lead: AtomicBool::new(false),
            followers: AtomicU64::new(0),
            turn: AtomicU64::new(0),
            mail: Notifier::default(),
            events: Notifier::default(),
            room: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            cpus: cpu::usable(),
            spinner: Spinner::default(),
        })
    }

    /// Whether this is the process that made it.
    pub fn is_ours(&self) -> bool {
        self.owner == fork::pid()
    }

    /// The lock is held for moments only, by threads that need nothing else to go on.
    pub fn state(&self) -> MutexGuard<'_, State> {
        debug_assert!(self.is_ours());
        self.state.lock()
    }

    /// The descriptor that workers kick.
    pub fn kick_fd(&self) -> RawFd {
        self.kick.raw()
    }

    pub(super) fn kick_source(&self) -> nix::Result<Arc<OwnedFd>> {
        self.kick.get()
    }

    /// Has the engine look around.
    pub fn kick(&self) {
        if let Ok(kick) = self.kick.get() {
            reactor::kick(kick.as_fd());
        }
    }

    pub fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.kick();
    }

    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    // ---- telling others ----

    /// Does what has to be done when something was gained, after the lock has been given back.
    pub fn follow_up(&self, gained: &Gained) {
        for &worker in &gained.wake {
            futex::wake(sleepers::Beds::word(&self.common, worker), 1);
        }
        if gained.mail {
            self.mail.notify();
        }
        if gained.events {
            self.events.notify();
        }
        if gained.timer || gained.drained {
            self.kick();
        }
        if gained.room {
            self.room.fetch_add(1, Ordering::SeqCst);
            futex::wake(&self.room, futex::EVERYONE);
        }
        if gained.outcomes > 0 {
            self.wake_followers();
        }
    }

    fn wake_followers(&self) {
        fence(Ordering::SeqCst);
        if self.followers.load(Ordering::SeqCst) > 0 {
            self.turn.fetch_add(1, Ordering::SeqCst);
            futex::wake(&self.turn, futex::EVERYONE);
        }
    }

    /// Outcomes have been set by somebody who is not the leader.
    pub fn announce_outcomes(&self) {
        bell::ring(self.common.bell(), |bits| {
            if bits & CALLER != 0 && futex::wake(self.common.bell(), 1) > 0 {
                CALLER
            } else {
                0
            }
        });
        self.wake_followers();
    }

    /// Wakes every worker that sleeps: something other than a task has come up.
    pub fn wake_all_workers(&self) {
        self.common.begin();
        while let Some(worker) = sleepers::take(&self.common) {
            futex::wake(sleepers::Beds::word(&self.common, worker), 1);
        }
    }

    // ---- draining ----

    /// Reads what workers have reported.
    pub fn drain(&self) -> Gained {
        let gained = self.state().drain();
        self.follow_up(&gained);
        gained
    }

    pub fn is_led(&self) -> bool {
        self.lead.load(Ordering::SeqCst)
    }

    /// The engine, or a leader that has left: has workers call the engine. False if there is
    /// something to read already.
    pub fn listen_for_engine(&self) -> bool {
        // First a new turn: a worker that has called and clears late would clear what is set here.
        bell::ignore(self.common.bell(), ENGINE);
        bell::listen(self.common.bell(), ENGINE);
        !self.state().has_news()
    }

    /// Waits until `done` says so: `Ok(false)` when `left` says zero, `EINTR` after a signal.
    pub fn wait_until(
        &self,
        done: &dyn Fn() -> bool,
        left: &dyn Fn() -> Option<Duration>,
    ) -> nix::Result<bool> {
        loop {
            if done() {
                return Ok(true);
            }
            if !self.lead.swap(true, Ordering::SeqCst) {
                let result = self.lead_until(done, left);
                self.resign();
                return result;
            }
            if !self.follow(done, left)? {
                return Ok(done());
            }
        }
    }

    fn lead_until(
        &self,
        done: &dyn Fn() -> bool,
        left: &dyn Fn() -> Option<Duration>,
    ) -> nix::Result<bool> {
        let bell = self.common.bell();
        bell::ignore(bell, ENGINE);
        let mut plenty = false;
        let mut naps = 0;
        loop {
            let gained = self.drain();
            if done() {
                return Ok(true);
            }
            let left = left();
            if left == Some(Duration::ZERO) {
                return Ok(false);
            }
            if gained.outcomes >= PLENTY || (plenty && gained.outcomes > 1) {
                plenty = true;
                naps += 1;
                if naps > NAPS {
                    // Nothing interrupts a nap: a signal may have come that has to be handled.
                    return Err(Errno::EINTR);
                }
                std::thread::sleep(left.map_or(NAP, |left| left.min(NAP)));
                continue;
            }
            plenty = false;
            let news = || self.state().has_news().then_some(());
            let longest = self.longest_spin();
            let found = self.spinner.spin(longest, || self.cpus > 1, news);
            if found.is_some() {
                continue;
            }
            let value = bell::listen(bell, CALLER);
            if self.state().has_news() || done() {
                bell::ignore(bell, CALLER);
                continue;
            }
            let slept = futex::wait(bell, value as u32, left);
            bell::ignore(bell, CALLER);
            match slept {
                Ok(()) | Err(Errno::ETIMEDOUT) => {}
                Err(errno) => {
                    self.drain();
                    return if done() { Ok(true) } else { Err(errno) };
                }
            }
        }
    }

    /// A long one takes a processor from the workers if they have work for all of them.
    fn longest_spin(&self) -> Duration {
        if self.state().busy() < self.cpus {
            spin::ANSWER
        } else {
            spin::BRIEF
        }
    }

    /// Somebody else leads now, or the engine.
    fn resign(&self) {
        self.lead.store(false, Ordering::SeqCst);
        self.wake_followers();
        if !self.listen_for_engine() {
            self.kick();
        }
    }

    /// Sleeps until the leader has done something; false when the time is over.
    fn follow(
        &self,
        done: &dyn Fn() -> bool,
        left: &dyn Fn() -> Option<Duration>,
    ) -> nix::Result<bool> {
        self.followers.fetch_add(1, Ordering::SeqCst);
        let turn = self.turn.load(Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let left = left();
        let slept = if done() || !self.is_led() {
            Ok(())
        } else if left == Some(Duration::ZERO) {
            Err(Errno::ETIMEDOUT)
        } else {
            futex::wait(&self.turn, turn as u32, left)
        };
        self.followers.fetch_sub(1, Ordering::SeqCst);
        match slept {
            Ok(()) => Ok(true),
            Err(Errno::ETIMEDOUT) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    // ---- the threads of the layer above ----

    pub fn post(&self, mail: Mail) {
        self.state().mail.push_back(mail);
        self.mail.notify();
    }

    pub fn take_mail(&self) -> Option<Mail> {
        self.state().mail.pop_front()
    }

    /// Sleeps until there may be mail: `Ok(false)` when the time is over, `EINTR` after a signal.
    pub fn wait_for_mail(&self, left: Option<Duration>) -> nix::Result<bool> {
        self.mail.wait(|| self.state().mail.is_empty(), left)
    }

    pub fn announce_change(&self) {
        self.state().events.push_back(Event::Change);
        self.events.notify();
    }

    pub fn take_event(&self) -> Option<Event> {
        self.state().events.pop_front()
    }

    /// As [`Hub::wait_for_mail`], for events.
    pub fn wait_for_event(&self, left: Option<Duration>) -> nix::Result<bool> {
        self.events.wait(|| self.state().events.is_empty(), left)
    }

    /// Sleeps until the queue is short enough, or the pool takes no tasks any more.
    pub fn wait_for_room(&self, tasks: usize, bytes: usize) -> nix::Result<()> {
        loop {
            let seen = self.room.load(Ordering::SeqCst);
            {
                let mut state = self.state();
                if state.refusing || state.has_room(tasks, bytes) {
                    return Ok(());
                }
                state.wants_room = Some((tasks / 2, bytes / 2));
            }
            futex::wait(&self.room, seen as u32, None)?;
        }
    }

    /// Takes no more tasks, and lets those go who wait for room.
    pub fn refuse(&self) {
        self.state().refusing = true;
        self.room.fetch_add(1, Ordering::SeqCst);
        futex::wake(&self.room, futex::EVERYONE);
    }

    // ---- the end ----

    /// Hands out nothing more: tasks that no worker has claimed are given back.
    pub fn terminate(&self) -> Vec<Owner> {
        self.refuse();
        // One that has still to begin would not hear of its end.
        self.common.begin();
        let mut state = self.state();
        state.terminated = true;
        state.withdraw_all()
    }

    /// No more tasks will be submitted.
    pub fn close(&self) {
        self.state().closed = true;
        self.kick();
    }

    /// If the pool is closed and all is done: has workers exit, and says so, once.
    pub(super) fn check_drained(&self) {
        {
            let mut state = self.state();
            if !state.closed || state.live > 0 || state.drained {
                return;
            }
            state.drained = true;
            state.refusing = true;
            state.events.push_back(Event::Drained);
        }
        self.events.notify();
        self.common.exit().store(1, Ordering::SeqCst);
        self.wake_all_workers();
    }

    /// Does what is due.
    pub(super) fn tick(&self) {
        if self.state().tick(Self::now()) {
            self.mail.notify();
        }
    }

    /// A worker has ended.
    pub(super) fn bury(&self, index: usize) {
        let gained = self.state().bury(index);
        self.follow_up(&gained);
    }

    /// Has the book's thread look after what lives as long as there are tasks: nobody who waited
    /// for the last one will.
    pub(super) fn tell_if_idle(&self) {
        if self.state().live == 0 {
            self.post(Mail::Idle);
        }
    }

    /// Workers that the engine has not seen yet.
    pub(super) fn unwatched(&self) -> Vec<(usize, OwnedFd)> {
        self.state().unwatched.drain(..).collect()
    }

    /// Is there a task that no worker has claimed?
    pub fn has_waiting(&self) -> bool {
        self.state().waiting() > 0 || !claim::is_empty(&self.common)
    }

    /// Closes its descriptors. Nothing can be done any more, but results that have come can be read.
    /// All that a forked child may do with it.
    pub fn close_descriptors(&self) {
        self.common.segment().close();
        self.kick.close();
    }

    /// The time that timers count in.
    pub fn now() -> Duration {
        clock::now()
    }
}
