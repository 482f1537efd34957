//! The engine of a pool: no Python, no `unsafe`.
//!
//! ```text
//!  pool's process                                                       worker process
//!  submit (any thread) ──► State ──► slots of the task ring ──claim──►  Station: accept, run, finish
//!                            ▲  ▲                                          │
//!  waiting caller ─drains────┘  └──── drains ─── Engine (a thread)         ▼
//!     sleeps on the bell              epoll: eventfd, deaths, timers    result ring of its lane
//! ```
//!
//! * [`shared`]: the layout of what both sides see.
//! * [`message`]: calls and outcomes on their way. [`jobs`]: who waits for an outcome.
//! * [`state`]: tasks, workers and timers of a pool. [`hub`]: the same behind a lock, with sleeping
//!   and waking ([`notifier`]). [`engine`]: the thread. [`station`]: the worker's side.

pub mod engine;
pub mod hub;
pub mod jobs;
pub mod message;
mod notifier;
pub mod shared;
pub mod state;
pub mod station;
