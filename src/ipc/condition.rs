//! A condition variable: who waits, who was notified, and one word to sleep on.
//!
//! The lock that goes with it is someone else's; its holder enters and notifies. Waiters leave
//! when they like, without the lock: those that time out, or die.
//!
//! ```text
//!  COUNTS   32-63 all_before    16-31 waiting     0-15 permits
//!  SIGNAL   0-31 counts notifications; what everyone sleeps on
//!  TICKETS  0-31 the next ticket              (written by the lock's holder)
//!  BEFORE   0-31 the next ticket at the last notification     (likewise)
//!
//!  enter           takes a ticket, waiting + 1
//!  notify n        n < waiting - permits:   permits + n, for tickets up to now (BEFORE)
//!                  otherwise:               all_before = the next ticket, waiting = permits = 0
//!  a waiter goes   ticket < all_before                       (it is counted no more)
//!                  ticket < BEFORE and permits > 0:          permits - 1, waiting - 1
//!                  when it gives up:                         waiting - 1
//! ```
//! * A permit belongs to no one in particular: whoever of those that waited when it was given
//!   comes first takes it. So no notification is lost in a waiter that died; and none is taken by
//!   one that began to wait after it.
//! * Who notifies never waits for those it notifies.
//! * A waiter that is killed stays counted until everyone is notified: a later `notify` may give
//!   permits too many, which shows as a spurious wake-up, never too few.

use std::time::Duration;

use super::wait::{Pace, Sleeper, Slept};
use super::word::Word;
use crate::sys::futex::EVERYONE;

const COUNTS: usize = 0;
const SIGNAL: usize = 1;
const TICKETS: usize = 2;
const BEFORE: usize = 3;
/// How many of the words of a line are used.
pub const WORDS: usize = 4;

const MOST: u64 = u16::MAX as u64;
/// Tickets are compared modulo 2^32: bounds that fall back by more than this are pulled along.
const STALE: u32 = 1 << 30;

/// A waiter's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(u32);

/// More waiters than can be counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooMany;

#[derive(Clone, Copy, Debug)]
struct Counts {
    all_before: u32,
    waiting: u64,
    permits: u64,
}

impl Counts {
    fn unpack(word: u64) -> Self {
        Self {
            all_before: (word >> 32) as u32,
            waiting: word >> 16 & MOST,
            permits: word & MOST,
        }
    }

    fn pack(self) -> u64 {
        u64::from(self.all_before) << 32 | self.waiting << 16 | self.permits
    }
}

fn is_before(ticket: u32, bound: u32) -> bool {
    (bound.wrapping_sub(ticket) as i32) > 0
}

/// The words of a condition. *Process-shared*; all zero when it is new.
#[derive(Debug)]
pub struct Condition<'a, W>(pub &'a [W]);

impl<W: Word> Condition<'_, W> {
    /// How many wait and have not been notified, and how many were notified and not yet gone.
    pub fn counts(&self) -> (u32, u32) {
        let counts = Counts::unpack(self.0[COUNTS].load());
        (
            (counts.waiting - counts.permits) as u32,
            counts.permits as u32,
        )
    }

    /// Begins to wait; for the lock's holder.
    pub fn enter(&self) -> Result<Ticket, TooMany> {
        let ticket = self.0[TICKETS].load() as u32;
        self.0[TICKETS].store(u64::from(ticket.wrapping_add(1)));
        let entered = self.0[COUNTS].update(|now| {
            let mut counts = Counts::unpack(now);
            if ticket.wrapping_sub(counts.all_before) > STALE {
                counts.all_before = ticket.wrapping_sub(STALE / 2);
            }
            counts.waiting += 1;
            (counts.waiting <= MOST).then_some(counts.pack())
        });
        entered.map(|_| Ticket(ticket)).map_err(|_| TooMany)
    }

    /// Lets `n` waiters go: how many sleepers have to be woken for that, with
    /// [`wake`](Self::wake). For the lock's holder.
    pub fn notify(&self, n: u32) -> u32 {
        let next = self.0[TICKETS].load();
        self.0[BEFORE].store(next);
        let mut wake = 0;
        let changed = self.0[COUNTS].update(|now| {
            let mut counts = Counts::unpack(now);
            let idle = counts.waiting - counts.permits;
            if idle == 0 || n == 0 {
                return None;
            }
            if u64::from(n) < idle {
                counts.permits += u64::from(n);
                wake = n;
            } else {
                counts = Counts {
                    all_before: next as u32,
                    waiting: 0,
                    permits: 0,
                };
                wake = EVERYONE;
            }
            Some(counts.pack())
        });
        if changed.is_err() {
            return 0;
        }
        let _ = self.0[SIGNAL].update(|now| Some(now.wrapping_add(1) & u64::from(u32::MAX)));
        wake
    }

    pub fn wake(&self, count: u32) {
        self.0[SIGNAL].wake(count);
    }

    /// Sleeps until notified: `false` when the time was over, and then it waits no more. `EINTR`
    /// on a signal: it still waits, and has to [`leave`](Self::leave) if it will not go on.
    pub fn wait(&self, ticket: Ticket, timeout: Option<Duration>) -> nix::Result<bool> {
        let mut sleeper = Sleeper::new(timeout, Pace::relaxed());
        loop {
            let signal = self.0[SIGNAL].load();
            if self.go(ticket) {
                return Ok(true);
            }
            if sleeper.sleep(&self.0[SIGNAL], signal)? == Slept::Deadline {
                return Ok(self.go(ticket) || !self.leave(ticket));
            }
        }
    }

    /// Goes, if it was notified.
    pub fn go(&self, ticket: Ticket) -> bool {
        let mut all = false;
        let took = self.0[COUNTS].update(|now| {
            let mut counts = Counts::unpack(now);
            all = is_before(ticket.0, counts.all_before);
            let before = self.0[BEFORE].load() as u32;
            if all || counts.permits == 0 || !is_before(ticket.0, before) {
                return None;
            }
            counts.permits -= 1;
            counts.waiting -= 1;
            Some(counts.pack())
        });
        all || took.is_ok()
    }

    /// Gives up, leaving the permits to the others. `false`: everyone had been notified.
    pub fn leave(&self, ticket: Ticket) -> bool {
        let left = self.0[COUNTS].update(|now| {
            let mut counts = Counts::unpack(now);
            if is_before(ticket.0, counts.all_before) || counts.waiting == 0 {
                return None;
            }
            counts.waiting -= 1;
            counts.permits = counts.permits.min(counts.waiting);
            Some(counts.pack())
        });
        left.is_ok()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    fn words() -> [AtomicU64; WORDS] {
        Default::default()
    }

    const NOW: Option<Duration> = Some(Duration::ZERO);

    #[test]
    fn as_many_go_as_were_notified() {
        let words = words();
        let condition = Condition(&words);
        let tickets: Vec<_> = (0..4).map(|_| condition.enter().unwrap()).collect();
        assert_eq!(condition.notify(2), 2);
        assert_eq!(condition.counts(), (2, 2));
        let went: Vec<_> = tickets
            .iter()
            .map(|&t| condition.wait(t, NOW).unwrap())
            .collect();
        assert_eq!(went, [true, true, false, false]);
        assert_eq!(condition.counts(), (0, 0));
    }

    #[test]
    fn a_permit_is_not_for_those_who_come_later() {
        let words = words();
        let condition = Condition(&words);
        let early = [condition.enter().unwrap(), condition.enter().unwrap()];
        condition.notify(1);
        let late = condition.enter().unwrap();
        assert_eq!(condition.wait(late, NOW), Ok(false));
        assert_eq!(condition.wait(early[1], NOW), Ok(true));
        assert_eq!(condition.wait(early[0], NOW), Ok(false));
    }

    #[test]
    fn notifying_nobody_is_forgotten() {
        let words = words();
        let condition = Condition(&words);
        assert_eq!(condition.notify(3), 0);
        let ticket = condition.enter().unwrap();
        assert_eq!(condition.wait(ticket, NOW), Ok(false));
    }

    #[test]
    fn what_a_dead_waiter_was_counted_for_is_forgotten_once_everyone_is_notified() {
        let words = words();
        let condition = Condition(&words);
        let (_dead, live) = (condition.enter(), condition.enter().unwrap());
        assert_eq!(condition.notify(u32::MAX), EVERYONE);
        assert_eq!(condition.wait(live, NOW), Ok(true));
        assert_eq!(condition.counts(), (0, 0));
    }

    #[test]
    fn the_living_get_what_the_dead_do_not_take() {
        let words = words();
        let condition = Condition(&words);
        let _dead = condition.enter();
        let live = [condition.enter().unwrap(), condition.enter().unwrap()];
        condition.notify(1);
        assert_eq!(condition.wait(live[0], NOW), Ok(true));
        condition.notify(1);
        assert_eq!(condition.wait(live[1], NOW), Ok(true));
    }

    #[test]
    fn who_gives_up_takes_no_permit_along() {
        let words = words();
        let condition = Condition(&words);
        let tickets: Vec<_> = (0..3).map(|_| condition.enter().unwrap()).collect();
        condition.notify(1);
        assert!(condition.leave(tickets[0]));
        assert_eq!(condition.wait(tickets[1], NOW), Ok(true));
        assert_eq!(condition.wait(tickets[2], NOW), Ok(false));
    }

    #[test]
    fn tickets_may_wrap() {
        let words = words();
        let condition = Condition(&words);
        for start in [STALE, STALE * 3, u32::MAX - 1] {
            words[TICKETS].store(u64::from(start), std::sync::atomic::Ordering::Relaxed);
            for _ in 0..4 {
                let tickets = [condition.enter().unwrap(), condition.enter().unwrap()];
                condition.notify(1);
                assert_eq!(condition.wait(tickets[1], NOW), Ok(true));
                assert_eq!(condition.wait(tickets[0], NOW), Ok(false));
            }
        }
    }

    #[test]
    fn there_is_a_limit() {
        let words = words();
        let condition = Condition(&words);
        assert!((0..MOST).all(|_| condition.enter().is_ok()));
        assert_eq!(condition.enter(), Err(TooMany));
    }
}

#[cfg(all(test, loom))]
mod models {
    use loom::sync::{Arc, Mutex};
    use loom::thread;

    use super::*;
    use crate::ipc::word_model::{ModelWord, check};

    struct Model {
        words: [ModelWord; WORDS],
        /// the lock that goes with it, and how many may pass
        lock: Mutex<u32>,
    }

    fn model() -> Arc<Model> {
        let words = [0; WORDS].map(ModelWord::new);
        Arc::new(Model {
            words,
            lock: Mutex::new(0),
        })
    }

    /// Waits until it may pass, as users do.
    fn pass(model: &Model) {
        let condition = Condition(&model.words[..]);
        let mut lock = model.lock.lock().unwrap();
        while *lock == 0 {
            let ticket = condition.enter().unwrap();
            drop(lock);
            assert_eq!(condition.wait(ticket, None), Ok(true));
            lock = model.lock.lock().unwrap();
        }
        *lock -= 1;
    }

    /// Lets `n` pass; wakes when the lock is free.
    fn let_pass(model: &Model, n: u32) {
        let condition = Condition(&model.words[..]);
        let mut lock = model.lock.lock().unwrap();
        *lock += n;
        let count = condition.notify(n);
        drop(lock);
        condition.wake(count);
    }

    #[test]
    fn loom_each_notification_lets_one_pass() {
        check(2, || {
            let model = model();
            let waiters: Vec<_> = (0..2)
                .map(|_| {
                    let model = model.clone();
                    thread::spawn(move || pass(&model))
                })
                .collect();
            let_pass(&model, 1);
            let_pass(&model, 1);
            waiters
                .into_iter()
                .for_each(|waiter| waiter.join().unwrap());
            assert_eq!(Condition(&model.words[..]).counts(), (0, 0));
        });
    }

    #[test]
    fn loom_all_pass_when_all_are_notified() {
        check(2, || {
            let model = model();
            let waiters: Vec<_> = (0..2)
                .map(|_| {
                    let model = model.clone();
                    thread::spawn(move || pass(&model))
                })
                .collect();
            let_pass(&model, 2);
            waiters
                .into_iter()
                .for_each(|waiter| waiter.join().unwrap());
        });
    }

    #[test]
    fn loom_who_gives_up_leaves_the_notification_to_another() {
        check(3, || {
            let model = model();
            let condition = Condition(&model.words[..]);
            let (quits, stays) = (condition.enter().unwrap(), condition.enter().unwrap());
            let quitter = {
                let model = model.clone();
                thread::spawn(move || Condition(&model.words[..]).leave(quits))
            };
            let stayer = {
                let model = model.clone();
                thread::spawn(move || Condition(&model.words[..]).wait(stays, None))
            };
            condition.wake(condition.notify(1));
            quitter.join().unwrap();
            assert_eq!(stayer.join().unwrap(), Ok(true));
        });
    }
}
