//! Objects as messages that do not fit a ring: a pickle (protocol 5) and the buffers beside it.
//!
//! ```text
//!  pickle ─► Outgoing: references to what is large ─ write_to ─► an extent ┐ one layout
//!                                                  └ to_vec ───► the heap  ┘
//!
//!  layout, little endian   u64 length of the pickle │ u64 number of buffers
//!                          for each buffer: u64 offset │ u64 length │ u64 1 if it is read-only
//!                          the pickle │ the buffers, at multiples of 64
//!
//!  unpickle   no buffers         read where it is, and let go of
//!             less than 1 MiB    copied to the heap, and let go of
//!             more               mapped privately, until the last view of a buffer has gone
//! ```
//!
//! A mapping costs the page faults of its first readers: 0.1 ms for 256 KiB, all read. A copy into
//! memory that the allocator has at hand costs 0.06 ms, into new memory 0.25 ms; whether it has
//! depends on how long arrays are kept. From 2 MiB on it mostly has not.

mod ends;
mod pickle;
mod unpickle;

pub use pickle::{Outgoing, pickle};
pub use unpickle::{Source, unpickle};

use pyo3::prelude::*;

/// Buffers from this size on travel beside the pickle, and `bytes` are not copied into it.
pub const LARGE: usize = 64 << 10;
/// Messages with buffers are mapped from this size on.
const MAPPED: usize = 256 << 10;
/// Copies from this size on are made without the GIL.
const LONG_COPY: usize = 256 << 10;

/// What buffers begin at multiples of.
const ALIGN: usize = 64;
/// Bytes of the header, and of what it says of each buffer.
const HEADER: usize = 16;
const BUFFER: usize = 24;

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<ends::ExtentSender>()?;
    module.add_class::<ends::ExtentReceiver>()
}
