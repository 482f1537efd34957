//! Calls and outcomes on their way between a pool and its workers.

use std::any::Any;
use std::fmt;

use super::shared::{IN_EXTENT, TaskHead};
use crate::ipc::extents::Taken;

/// A call, encoded. Process-local; a forked child does not use its copy.
#[derive(Debug)]
pub enum Call {
    /// Fits into a slot: `func` bytes of a function's pickle, then the rest.
    Inline {
        flags: u16,
        func: u16,
        bytes: Box<[u8]>,
    },
    /// In an extent: the reference to it, and its length.
    Extent(u32, usize),
    /// As it will be in an extent, when there is one to be had.
    Heap(Box<[u8]>),
    /// In its slot of the ring.
    Posted,
}

impl Call {
    /// Its bytes, if it does not fit into a slot; 0 if it does.
    pub fn large(&self) -> usize {
        match self {
            Self::Heap(bytes) => bytes.len(),
            Self::Extent(_, len) => *len,
            Self::Inline { .. } | Self::Posted => 0,
        }
    }

    /// The head of its slot, and what follows. Of a call that can be in a slot.
    pub fn slot<'a>(&'a self, task: u64, index: &'a mut [u8; 4]) -> Option<(TaskHead, &'a [u8])> {
        let (flags, func, bytes) = match self {
            Self::Inline { flags, func, bytes } => (*flags, *func, &**bytes),
            Self::Extent(reference, _) => {
                *index = reference.to_le_bytes();
                (IN_EXTENT, 0, &index[..])
            }
            Self::Heap(_) | Self::Posted => return None,
        };
        let head = TaskHead {
            task,
            flags,
            func,
            body: (bytes.len() - func as usize) as u32,
        };
        Some((head, bytes))
    }
}

/// Short outcomes (numbers, short texts) are kept where they are.
const SHORT: usize = 30;

/// The bytes of an outcome.
pub enum Body {
    Short(u8, [u8; SHORT]),
    Pickle(Box<[u8]>),
    /// In the worker's memory, as long as this lives.
    Extent(Taken),
    /// Copied out of an extent.
    Copied(Vec<u8>),
}

impl Body {
    /// A copy of a pickle that is in a ring.
    pub fn copy(bytes: &[u8]) -> Self {
        if bytes.len() <= SHORT {
            let mut short = [0; SHORT];
            short[..bytes.len()].copy_from_slice(bytes);
            Self::Short(bytes.len() as u8, short)
        } else {
            Self::Pickle(bytes.into())
        }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short(len, _) => write!(f, "Short({len})"),
            Self::Pickle(bytes) => write!(f, "Pickle({})", bytes.len()),
            Self::Extent(_) => write!(f, "Extent"),
            Self::Copied(bytes) => write!(f, "Copied({})", bytes.len()),
        }
    }
}

/// How a task ended. Process-local.
#[derive(Debug)]
pub enum Outcome {
    /// What a worker sent: whether it is a value, and its bytes.
    Sent(bool, Body),
    /// A failure that was found in the pool's process: an object of the layer above.
    Local(Box<dyn Any + Send + Sync>),
}

/// Kinds of records in a result ring, the `tag` of [`crate::ipc::ring`]. Those up to `ACK` begin with
/// the number of the task.
pub mod record {
    /// A value follows.
    pub const VALUE: u32 = 1;
    /// A failure follows.
    pub const FAILURE: u32 = 2;
    /// The number of an extent with a value follows.
    pub const BIG_VALUE: u32 = 3;
    /// The number of an extent with a failure follows.
    pub const BIG_FAILURE: u32 = 4;
    /// The task has been accepted.
    pub const ACK: u32 = 5;
    /// A pickled message of the worker, of no task.
    pub const OTHER: u32 = 6;
    /// The same, about the worker itself: for who looks after the workers.
    pub const NOTICE: u32 = 7;
}
