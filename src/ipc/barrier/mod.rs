//! A barrier: one word that counts arrivals and generations.
//!
//! ```text
//!  STATE   0 broken   1-31 generation   32-47 arrived, FULL: the action runs   48-63 history
//!          └────────────────────────┘ what everyone sleeps on
//!  RUNNER  0-31 pid of who runs the action   32-63 the generation that it belongs to, plus 1
//!
//!            arrive                the last one arrives       the action is done
//!   Filling ────────► Filling ──────────────────────► Full ──────────────────────► Filling, next
//!      │  │              │  (no action: straight on to the next generation)   ▲    generation
//!      │  │ withdraw     │                             │                      │
//!      │  └──◄───────────┘                             │                      │
//!      └────── abort, time over, action fails ─────────┴──► Broken ── reset ──┘
//! ```
//! A waiter leaves when its generation is over, at its leisure: nobody waits for those who leave,
//! so one that dies on the way out holds up nobody. How its generation ended is in the history (a
//! bit for each of the last 16, set: broken), for those who look late. Who runs the action is
//! noted, because if it dies the others would wait for ever: they break the barrier instead.

use std::time::Duration;

use super::wait::{Pace, Sleeper, Slept};
use super::word::Word;
use crate::sys::futex::EVERYONE;

const STATE: usize = 0;
const RUNNER: usize = 1;
/// How many of the words of a line are used.
pub const WORDS: usize = 2;

const FULL: u32 = 0xFFFF;
/// The most parties that can be counted.
pub const MOST: u32 = FULL - 1;
const GENERATION: u32 = u32::MAX >> 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    broken: bool,
    generation: u32,
    arrived: u32,
    history: u32,
}

impl State {
    fn unpack(word: u64) -> Self {
        Self {
            broken: word & 1 != 0,
            generation: word as u32 >> 1,
            arrived: (word >> 32) as u32 & 0xFFFF,
            history: (word >> 48) as u32,
        }
    }

    fn pack(self) -> u64 {
        u64::from(self.broken)
            | u64::from(self.generation & GENERATION) << 1
            | u64::from(self.arrived) << 32
            | u64::from(self.history & 0xFFFF) << 48
    }

    fn next(self, broken: bool) -> Self {
        Self {
            broken: false,
            generation: self.generation.wrapping_add(1) & GENERATION,
            arrived: 0,
            history: self.history << 1 | u32::from(broken),
        }
    }

    /// How a generation ended, as far as it is remembered; `None` if it has not.
    fn end_of(self, generation: u32) -> Option<Result<(), Broken>> {
        let broken = if self.generation == generation {
            self.broken.then_some(true)?
        } else {
            let ago = self.generation.wrapping_sub(generation) & GENERATION;
            self.history
                .checked_shr(ago - 1)
                .is_some_and(|bits| bits & 1 != 0)
        };
        Some(if broken { Err(Broken) } else { Ok(()) })
    }
}

/// The barrier is broken, or was reset while one waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

/// A party that has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    pub index: u32,
    generation: u32,
    pub part: Part,
}

/// What it has to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Wait for the others.
    Wait,
    /// Run the action, then [`finish`](Barrier::finish).
    Act,
    /// Nothing: it was the last one.
    Go,
}

/// The words of a barrier. *Process-shared*; all zero when it is new.
#[derive(Debug)]
pub struct Barrier<'a, W>(pub &'a [W]);

impl<W: Word> Barrier<'_, W> {
    fn state(&self) -> State {
        State::unpack(self.0[STATE].load())
    }

    pub fn is_broken(&self) -> bool {
        self.state().broken
    }

    /// How many wait.
    pub fn waiting(&self, parties: u32) -> u32 {
        match self.state() {
            State { broken: true, .. } => 0,
            State { arrived: FULL, .. } => parties,
            state => state.arrived,
        }
    }

    /// For compatibility: 0 filling, 1 full, -2 broken, as `threading.Barrier` counts.
    pub fn phase(&self) -> i32 {
        match self.state() {
            State { broken: true, .. } => -2,
            State { arrived: FULL, .. } => 1,
            _ => 0,
        }
    }

    /// Arrives at once, unless the action runs (`None`) or the barrier is broken.
    pub fn arrive(&self, parties: u32, action: bool, pid: u32) -> Result<Option<Arrival>, Broken> {
        let mut part = Part::Wait;
        let before = self.0[STATE].update(|now| {
            let mut state = State::unpack(now);
            if state.broken || state.arrived == FULL {
                return None;
            }
            part = match (state.arrived + 1 >= parties, action) {
                (false, _) => Part::Wait,
                (true, true) => Part::Act,
                (true, false) => Part::Go,
            };
            match part {
                Part::Wait => state.arrived += 1,
                Part::Act => state.arrived = FULL,
                Part::Go => state = state.next(false),
            }
            Some(state.pack())
        });
        let State {
            arrived: index,
            generation,
            ..
        } = match before {
            Ok(before) => State::unpack(before),
            Err(now) if State::unpack(now).broken => return Err(Broken),
            Err(_) => return Ok(None),
        };
        match part {
            Part::Wait => {}
            Part::Act => self.0[RUNNER].store(u64::from(generation + 1) << 32 | u64::from(pid)),
            Part::Go => self.wake(parties),
        }
        Ok(Some(Arrival {
            index,
            generation,
            part,
        }))
    }

    fn wake(&self, parties: u32) {
        if parties > 1 {
            self.0[STATE].wake(EVERYONE);
        }
    }

    /// The action is done: lets everyone go, or if it failed breaks the barrier.
    pub fn finish(&self, arrival: Arrival, parties: u32, failed: bool) -> Result<(), Broken> {
        let changed = self.0[STATE].update(|now| {
            let state = State::unpack(now);
            if state.broken || state.generation != arrival.generation || state.arrived != FULL {
                return None;
            }
            let after = if failed {
                State {
                    broken: true,
                    ..state
                }
            } else {
                state.next(false)
            };
            Some(after.pack())
        });
        self.wake(parties);
        changed.map(drop).map_err(|_| Broken)
    }

    /// Breaks the barrier.
    pub fn abort(&self) {
        let _ = self.break_if(|_| true);
    }

    fn break_if(&self, condition: impl Fn(State) -> bool) -> bool {
        let broke = self.0[STATE].update(|now| {
            let state = State::unpack(now);
            (!state.broken && condition(state)).then_some(
                State {
                    broken: true,
                    ..state
                }
                .pack(),
            )
        });
        if broke.is_ok() {
            self.0[STATE].wake(EVERYONE);
        }
        broke.is_ok()
    }

    /// Makes it as new; for those who wait it is broken.
    pub fn reset(&self) {
        let changed = self.0[STATE].update(|now| {
            let state = State::unpack(now);
            (state.broken || state.arrived > 0).then_some(state.next(true).pack())
        });
        if changed.is_ok() {
            self.0[STATE].wake(EVERYONE);
        }
    }

    /// Will not wait any longer, without breaking the barrier: a signal handler raised.
    pub fn withdraw(&self, arrival: Arrival) {
        let _ = self.0[STATE].update(|now| {
            let mut state = State::unpack(now);
            let mine = !state.broken && state.generation == arrival.generation;
            if !mine || state.arrived == FULL || state.arrived == 0 {
                return None;
            }
            state.arrived -= 1;
            Some(state.pack())
        });
    }

    /// How the generation ended, if it is over.
    pub fn look(&self, arrival: Arrival) -> Option<Result<(), Broken>> {
        self.state().end_of(arrival.generation)
    }

    /// Sleeps until the generation is over; breaks the barrier when the time is. `EINTR` on a
    /// signal: it still waits, and has to [`withdraw`](Self::withdraw) if it will not go on.
    pub fn wait(
        &self,
        arrival: Arrival,
        timeout: Option<Duration>,
        runs: impl Fn(u32) -> bool,
    ) -> nix::Result<Result<(), Broken>> {
        let mut sleeper = Sleeper::new(timeout, Pace::relaxed());
        let mut nobody = false;
        loop {
            let now = self.0[STATE].load();
            let state = State::unpack(now);
            if let Some(end) = state.end_of(arrival.generation) {
                return Ok(end);
            }
            match sleeper.sleep(&self.0[STATE], now)? {
                Slept::Woken => {}
                Slept::Slice => self.watch(state, &runs, &mut nobody),
                Slept::Deadline => {
                    self.break_if(|state| state.generation == arrival.generation);
                }
            }
        }
    }

    /// Sleeps while the action runs: `false` when the time was over.
    pub fn wait_for_room(
        &self,
        timeout: Option<Duration>,
        runs: impl Fn(u32) -> bool,
    ) -> nix::Result<bool> {
        let mut sleeper = Sleeper::new(timeout, Pace::watchful());
        let mut nobody = false;
        loop {
            let now = self.0[STATE].load();
            let state = State::unpack(now);
            if state.broken || state.arrived != FULL {
                return Ok(true);
            }
            match sleeper.sleep(&self.0[STATE], now)? {
                Slept::Woken => {}
                Slept::Slice => self.watch(state, &runs, &mut nobody),
                Slept::Deadline => return Ok(false),
            }
        }
    }

    /// Breaks the barrier if who runs the action is dead, or (seen twice) never said who it is.
    fn watch(&self, seen: State, runs: impl Fn(u32) -> bool, nobody: &mut bool) {
        if seen.arrived != FULL {
            return;
        }
        let runner = self.0[RUNNER].load();
        let known = (runner >> 32) as u32 == seen.generation + 1;
        if (known && !runs(runner as u32)) || (!known && *nobody) {
            self.break_if(|state| state == seen);
        }
        *nobody = !known;
    }
}

#[cfg(all(test, loom))]
mod models;

#[cfg(all(test, not(loom)))]
mod tests;
