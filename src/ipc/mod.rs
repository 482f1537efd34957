//! The logic of what processes share: no Python, no `unsafe`.

pub mod frame;
