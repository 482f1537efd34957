//! Segments: made, or adopted from the process that made them.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;

use crate::ipc::family::Table;
use crate::sys::io::Target;
use crate::sys::memory::{self, LINE, Mapping, PAGE};
use crate::sys::{extent, fork};

const MAGIC: u64 = u64::from_le_bytes(*b"billiard");
/// Bytes at the start of a common segment that hold its head and table (500 entries).
pub(super) const COMMON_HEAD: usize = 3 * PAGE;
pub(super) const SINGLE_HEAD: usize = PAGE;

const HEAD_MAGIC: usize = 0;
const HEAD_ID: usize = 1;
const HEAD_SIZE: usize = 3;
const HEAD_KIND: usize = 4;

/// What a segment is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// One block.
    Single = 0,
    /// Many blocks.
    Common = 1,
    /// One block, and a file behind it that grows.
    Growable = 2,
}

impl Kind {
    fn of(number: u64) -> nix::Result<Self> {
        match number {
            0 => Ok(Self::Single),
            1 => Ok(Self::Common),
            2 => Ok(Self::Growable),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Bytes in front of the first block.
    fn head(self) -> usize {
        match self {
            Self::Common => COMMON_HEAD,
            Self::Single | Self::Growable => SINGLE_HEAD,
        }
    }
}

/// One mapped segment. *Process-local* handle; inherited by a forked child.
#[derive(Debug)]
pub struct Segment {
    pub(super) mapping: Arc<Mapping>,
    id: u128,
    pub(super) kind: Kind,
    /// the fork generation of the process that gives out its blocks, if that is or was us
    maker: Option<u32>,
}

impl Segment {
    pub(super) fn create(len: usize, kind: Kind) -> nix::Result<Self> {
        // The names are for people who look at /proc/PID/fd.
        let mapping = match kind {
            Kind::Common => Mapping::create(c"billiard-arena", len)?,
            Kind::Single => Mapping::create(c"billiard-block", len)?,
            Kind::Growable => Mapping::create_growable(c"billiard-queue", len)?,
        };
        let id = memory::random_id()?;
        let head = mapping.line(0);
        head[HEAD_ID].store(id as u64, Ordering::Relaxed);
        head[HEAD_ID + 1].store((id >> 64) as u64, Ordering::Relaxed);
        head[HEAD_SIZE].store(len as u64, Ordering::Relaxed);
        head[HEAD_KIND].store(kind as u64, Ordering::Relaxed);
        head[HEAD_MAGIC].store(MAGIC, Ordering::Release);
        Ok(Self {
            mapping: Arc::new(mapping),
            id,
            kind,
            maker: Some(fork::generation()),
        })
    }

    pub(super) fn adopt(fd: i32, id: u128) -> nix::Result<Self> {
        let fd = memory::take_over(fd)?;
        let mut head = [0; LINE];
        extent::read_at(fd.as_raw_fd(), 0, Target::from(&mut head[..]))?;
        let word = |index: usize| {
            let bytes = head[index * 8..][..8].try_into();
            u64::from_ne_bytes(bytes.expect("eight bytes"))
        };
        let there = u128::from(word(HEAD_ID)) | u128::from(word(HEAD_ID + 1)) << 64;
        let size = usize::try_from(word(HEAD_SIZE)).map_err(|_| Errno::EINVAL)?;
        let kind = Kind::of(word(HEAD_KIND))?;
        if word(HEAD_MAGIC) != MAGIC || there != id || size < kind.head() {
            return Err(Errno::EINVAL);
        }
        Ok(Self {
            mapping: Arc::new(Mapping::adopt(fd, size)?),
            id,
            kind,
            maker: None,
        })
    }

    /// Names the segment in all processes.
    pub fn id(&self) -> u128 {
        self.id
    }

    /// The descriptor; `EBADF` if the program closed it behind our back.
    pub fn fd(&self) -> nix::Result<i32> {
        self.mapping.fd()
    }

    /// Closes the descriptor of a segment that has one user, who needs it no more.
    pub fn close_fd(&self) {
        self.mapping.close_fd();
    }

    pub fn len(&self) -> usize {
        self.mapping.len()
    }

    pub fn is_empty(&self) -> bool {
        false
    }

    /// Whether this process gives out its blocks.
    pub(super) fn is_ours(&self) -> bool {
        self.maker == Some(fork::generation())
    }

    /// Zeroes bytes that nobody uses.
    pub fn zero(&self, offset: usize, len: usize) {
        self.mapping.zero(offset, len);
    }

    pub(super) fn head(&self) -> usize {
        self.kind.head()
    }

    /// The descendants that see it; only common segments are given out in parts.
    pub fn table(&self) -> Option<Table<'_, AtomicU64>> {
        (self.kind == Kind::Common)
            .then(|| Table::new(self.mapping.words(LINE, (COMMON_HEAD - LINE) / 8)))
    }
}
