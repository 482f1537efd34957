//! The logic of what processes share: no Python, no `unsafe`.

pub mod atomic;
pub mod bell;
pub mod claim;
pub mod frame;
pub mod lease;
pub mod ring;
pub mod sleepers;
