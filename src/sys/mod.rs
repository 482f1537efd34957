//! System calls and raw memory: the one layer that may be `unsafe`, and the one that knows the
//! operating system. Everything above calls safe functions from here.
#![allow(unsafe_code)]

pub mod clock;
pub mod cpu;
pub mod descriptor;
pub mod errno;
pub mod extent;
pub mod fdpass;
pub mod fork;
pub mod futex;
pub mod io;
pub mod life;
pub mod lifeline;
pub mod memory;
pub mod mutex;
pub mod pidfd;
pub mod poll;
pub mod posix_semaphore;
pub mod prctl;
pub mod process;
pub mod reactor;
pub mod segment;
pub mod shm;
pub mod spare;
pub mod spawn;
pub mod template;
pub mod thread;
