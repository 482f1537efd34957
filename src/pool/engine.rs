//! The engine: a thread of the pool's process that needs no interpreter.
//!
//! It waits in `epoll` for three things: its eventfd (a worker's bell, a new earliest timer, a new
//! worker, the end), workers that end, and the earliest timer. It acts alone where nobody else can:
//! on deaths and limits, on outcomes while no caller waits, on the queue.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use super::hub::{Hub, PLENTY};
use crate::sys::reactor::{self, Reactor};

/// How long it looks away while outcomes are plenty and nobody waits for them.
const NAP: Duration = Duration::from_micros(200);
/// How long the first workers that no CPU is free for stay out of the way of the pool's making, if
/// there is not more than one task before.
const HEAD_START: Duration = Duration::from_millis(25);
/// The token of the eventfd; others are indexes of workers.
const KICK: u64 = u64::MAX;

/// Starts the thread. It ends after [`Hub::stop`], and keeps the hub until then.
pub fn start(hub: Arc<Hub>) -> nix::Result<JoinHandle<()>> {
    let reactor = Arc::new(Reactor::new()?);
    let kick = hub.kick_source()?;
    reactor.add(&kick, KICK)?;
    let mut engine = Engine {
        hub,
        kick,
        reactor,
        watched: HashMap::new(),
        begin_at: Some(Hub::now() + HEAD_START),
    };
    std::thread::Builder::new()
        .name("billiard-pool".into())
        .stack_size(256 << 10)
        .spawn(move || {
            reactor::block_signals();
            engine.run();
        })
        .map_err(|error| nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or(libc::EAGAIN)))
}

struct Engine {
    hub: Arc<Hub>,
    kick: Arc<OwnedFd>,
    reactor: Arc<Reactor>,
    /// Copies of the sentinels that are watched, by the index of the worker.
    watched: HashMap<usize, OwnedFd>,
    /// When to let the last of the first workers begin; `None`: they have.
    begin_at: Option<Duration>,
}

impl Engine {
    fn run(&mut self) {
        while !self.hub.is_stopped() {
            let tokens = self.reactor.wait(self.patience());
            for token in tokens {
                if token == KICK {
                    reactor::calm(self.kick.as_fd());
                } else {
                    self.bury(token as usize);
                }
            }
            self.watch_new();
            if self.begin_at.is_some_and(|at| at <= Hub::now()) {
                self.begin_at = None;
                self.hub.common.begin();
            }
            self.hub.tick();
            if !self.hub.is_led() {
                self.drain();
            }
            self.hub.check_drained();
        }
        // Results may be kept for long; they need no more than what is in them.
        self.hub.state().workers.clear();
        self.hub.close_descriptors();
    }

    fn patience(&self) -> Option<Duration> {
        let timer = self.hub.state().next_timer();
        let due = self.begin_at.into_iter().chain(timer).min()?;
        Some(due.saturating_sub(Hub::now()))
    }

    /// Reads what there is, and goes on listening.
    fn drain(&self) {
        loop {
            let gained = self.hub.drain();
            if gained.outcomes > 0 {
                self.hub.tell_if_idle();
            }
            if self.hub.is_led() || self.hub.is_stopped() {
                return;
            }
            if gained.outcomes >= PLENTY {
                // Timers and deaths can wait as long as that, and no longer: however much comes in,
                // they are looked at next.
                std::thread::sleep(NAP);
                self.hub.kick();
                return;
            } else if self.hub.listen_for_engine() {
                return;
            }
            if self.patience() == Some(Duration::ZERO) {
                self.hub.kick();
                return;
            }
        }
    }

    fn watch_new(&mut self) {
        for (index, sentinel) in self.hub.unwatched() {
            if self.reactor.add(sentinel.as_fd(), index as u64).is_ok() {
                self.watched.insert(index, sentinel);
            }
        }
    }

    fn bury(&mut self, index: usize) {
        if let Some(sentinel) = self.watched.remove(&index) {
            self.reactor.remove(sentinel.as_fd());
        }
        self.hub.bury(index);
        self.hub.announce_outcomes();
        self.hub.tell_if_idle();
    }
}
