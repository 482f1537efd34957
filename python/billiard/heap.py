"""Shared memory in blocks of any size.

```
 BufferWrapper is a _core.Block ──► segment (memfd, mapped shared)      small blocks: many in one
                                                                       1 MiB and more: one each
 pickled for a child being started:  lend(block) = (segment as a descriptor, offset, size)
 unpickled there:                    borrow(...)
```
The allocator is in the core (`src/ipc/arena/`): a block is freed with the last object that holds
it, and its bytes are used again when no living process can see them. A child gets one descriptor
per segment, however many blocks of it are sent.
"""

from __future__ import annotations

import os

from . import context
from ._core import Block as Block
from ._core import Segment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["BufferWrapper"]

# ---- blocks on their way to a child ----


class _Lent:
    """A segment in the pickle of a child that is being started."""

    def __init__(self, segment: Segment) -> None:
        self._segment = segment
        self._loan = segment.lend()  # held until the child is gone, see `lend`

    def __reduce__(self) -> tuple[Any, ...]:
        from .reduction import DupFd

        # Once per pickle. What is refused may be pickled again, and asks for the descriptor again.
        return _borrow_segment, (self._segment.id, DupFd(self._segment.fd), self._loan.promises)


def _borrow_segment(segment_id: bytes, fd: Any, promises: list[Any]) -> Segment:
    return Segment.borrow(segment_id, fd.detach(), promises)


def lend(block: Block) -> tuple[Any, int, int]:
    """What to pickle for a block while a child is being started (ours).

    Raises RuntimeError at any other time, and OSError (EBADF) if the program has closed the
    descriptor of the memory behind our back.
    """
    context.assert_spawning(block)
    # With the child's Popen, which lives as long as the child is ours.
    segments = vars(context.get_spawning_popen()).setdefault("_lent_segments", {})
    segment = block.segment
    if segment.id not in segments:
        segments[segment.id] = _Lent(segment)
    return segments[segment.id], block.offset, block.size


def borrow(lent: tuple[Segment, int, int]) -> Block:
    """The block that `lend` described, in the child (ours)."""
    segment, offset, size = lent
    return segment.block(offset, size)


# ---- the classes of multiprocessing ----


class Arena:
    """A file in memory, mapped (origin: multiprocessing). Blocks do not come from these here.

    `size` is in bytes; with `fd`, that file is mapped instead of a new one, and taken over.
    """

    def __init__(self, size: int, fd: int = -1) -> None:
        import mmap

        from .util import Finalize

        if fd == -1:
            fd = os.memfd_create("billiard", os.MFD_CLOEXEC)
            try:
                os.ftruncate(fd, size)
            except OSError:
                os.close(fd)
                raise
        self.size = size
        self.fd = fd
        Finalize(self, os.close, (fd,))
        self.buffer = mmap.mmap(fd, size)

    def __reduce__(self) -> tuple[Any, ...]:
        return reduce_arena(self)


def reduce_arena(a: Arena) -> tuple[Any, ...]:
    """How an `Arena` is pickled for another process."""
    if a.fd == -1:
        raise ValueError("an arena without a descriptor cannot be pickled")
    from .reduction import DupFd

    return rebuild_arena, (a.size, DupFd(a.fd))


def rebuild_arena(size: int, dupfd: Any) -> Arena:
    """The `Arena` in the other process."""
    return Arena(size, dupfd.detach())


class Heap:
    """Gives out blocks of shared memory (origin: multiprocessing).

    All heaps give out of the process's own segments; `size` is not used.
    """

    _alignment = 64

    def __init__(self, size: int = 4096) -> None:
        self._size = size
        self._allocated_blocks: set[Block] = set()

    @staticmethod
    def _roundup(n: int, alignment: int) -> int:
        return -(-n // alignment) * alignment

    def malloc(self, size: int) -> Block:
        """A block of `size` bytes, all zero. Raises OSError (ENOMEM) if there is no memory."""
        block = Block(size)
        self._allocated_blocks.add(block)
        return block

    def free(self, block: Block) -> None:
        """Gives a block of `malloc` back. Its bytes stay while an object or buffer holds them."""
        self._allocated_blocks.remove(block)


class BufferWrapper(Block):
    """A block of shared memory that lives as long as this object and the views on it do.

    It can be pickled while a child is being started (origin: multiprocessing).
    """

    _heap = Heap()

    def __init__(self, size: int) -> None:
        """`size` is in bytes."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _borrow_wrapper, (type(self), *lend(self))

    def get_address(self) -> int:
        """Where this process sees the block."""
        return self.address

    def get_size(self) -> int:
        """The size in bytes that was asked for."""
        return self.size

    def create_memoryview(self) -> memoryview:
        """A writable view of the bytes."""
        block: Any = self
        return memoryview(block)


def _borrow_wrapper(
    cls: type[BufferWrapper], segment: Segment, offset: int, size: int
) -> BufferWrapper:
    return cls.__new__(cls, segment.block(offset, size))
