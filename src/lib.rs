//! The Rust core of billiard.
//!
//! Three layers, one direction:
//!
//! * [`py`]: PyO3 classes and functions. Converts, blocks in one way, turns errors into exceptions.
//! * [`ipc`]: the logic of shared words and shared memory. No Python, no `unsafe`.
//! * [`sys`]: system calls and raw memory, the only place for `unsafe`.
//!
//! Fork is the normal case: every type says whether it is *process-shared* (words in shared
//! memory) or *process-local*, and what becomes of it in a forked child.

#![deny(unsafe_code)]

pub mod ipc;
#[cfg(not(loom))] // the words that it works with are modelled where they are
pub mod pool;
pub mod sys;

#[cfg(feature = "python")]
mod py;
