//! Blocks: of a common segment, or alone in one.

use std::sync::Arc;

use nix::errno::Errno;

use super::segment::{Kind, SINGLE_HEAD, Segment};
use super::{STATE, install};
use crate::ipc::heap::Spot;
use crate::sys::memory::{BytesRef, LINE, LineRef, PAGE, WordsRef};

/// Blocks from this size on get a segment of their own.
const SINGLE: usize = 1 << 20;

/// A block of shared memory. *Process-local* handle of *process-shared* bytes.
///
/// Dropped in the process that made it, the bytes are used again as soon as no descendant can see
/// them; dropped elsewhere, nothing happens to them.
#[derive(Debug)]
pub struct Block {
    pub(super) segment: Arc<Segment>,
    pub(super) offset: usize,
    pub(super) size: usize,
    /// class and epoch of a block that goes back to the heap
    pub(super) lot: Option<(usize, u64)>,
}

impl Block {
    /// A block of at least one byte; all zero. Untouched pages of big ones cost nothing.
    pub fn new(size: usize) -> nix::Result<Self> {
        install();
        if size >= SINGLE {
            return Self::alone(size, Kind::Single);
        }
        STATE.lock().alloc(size)
    }

    /// A block in a segment of its own whose file can grow: see `sys::extent`.
    pub fn growable(size: usize) -> nix::Result<Self> {
        install();
        Self::alone(size, Kind::Growable)
    }

    fn alone(size: usize, kind: Kind) -> nix::Result<Self> {
        let len = size
            .checked_add(SINGLE_HEAD + PAGE - 1)
            .ok_or(Errno::ENOMEM)?
            / PAGE
            * PAGE;
        let segment = Arc::new(Segment::create(len, kind)?);
        if kind == Kind::Single {
            STATE.lock().know(&segment, Vec::new());
        }
        Ok(Self {
            segment,
            offset: SINGLE_HEAD,
            size,
            lot: None,
        })
    }

    /// A block that another process gave out.
    pub fn foreign(segment: Arc<Segment>, offset: usize, size: usize) -> nix::Result<Self> {
        let end = offset.checked_add(size).ok_or(Errno::EINVAL)?;
        if offset < segment.head() || end > segment.len() || !offset.is_multiple_of(LINE) {
            return Err(Errno::EINVAL);
        }
        Ok(Self {
            segment,
            offset,
            size,
            lot: None,
        })
    }

    pub fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }

    pub fn offset(&self) -> usize {
        self.offset
    }

    pub fn size(&self) -> usize {
        self.size
    }

    /// Where this process sees the block; valid for as long as the block is held.
    pub fn address(&self) -> std::ptr::NonNull<u8> {
        self.segment.mapping.address(self.offset, self.size)
    }

    /// The line of words that the block starts with.
    pub fn line(&self) -> LineRef {
        LineRef::new(&self.segment.mapping, self.offset)
    }

    /// The line of words at byte `offset` of the block.
    pub fn line_at(&self, offset: usize) -> LineRef {
        assert!(offset <= self.size && LINE <= self.size - offset);
        LineRef::new(&self.segment.mapping, self.offset + offset)
    }

    /// `count` words of the block from byte `offset` on.
    pub fn words(&self, offset: usize, count: usize) -> WordsRef {
        assert!(offset <= self.size && count * 8 <= self.size - offset);
        WordsRef::new(&self.segment.mapping, self.offset + offset, count)
    }

    /// `len` bytes of the block from byte `offset` on.
    pub fn bytes(&self, offset: usize, len: usize) -> BytesRef {
        assert!(offset <= self.size && len <= self.size - offset);
        BytesRef::new(&self.segment.mapping, self.offset + offset, len)
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Some((class, created)) = self.lot
            && self.segment.is_ours()
        {
            let spot = Spot {
                segment: Arc::clone(&self.segment),
                offset: self.offset,
            };
            STATE.lock().free(spot, class, created);
        }
    }
}
