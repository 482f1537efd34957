//! The logic of what processes share: no Python, no `unsafe`.

pub mod arena;
pub mod atomic;
pub mod barrier;
pub mod bell;
pub mod channel;
pub mod claim;
pub mod condition;
pub mod event;
pub mod extents;
pub mod family;
pub mod fifo;
pub mod frame;
pub mod heap;
pub mod lease;
pub mod outbox;
pub mod owned;
pub mod plain;
pub mod ring;
pub mod semaphore;
pub mod sleepers;
pub mod spin;
pub mod wait;
pub mod word;
#[cfg(all(test, loom))]
pub mod word_model;
