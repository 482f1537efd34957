"""Small system calls under names that do not change."""

from __future__ import annotations

import os
import sys
from fcntl import F_GETFL, F_SETFL, fcntl
from io import UnsupportedOperation
from os import O_NONBLOCK, fsdecode, fsencode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator
    from typing import Any, SupportsInt, TypeVar

    from _typeshed import FileDescriptorLike

    T = TypeVar("T", bound=Hashable)

__all__ = [
    "close_open_fds",
    "fsdecode",
    "fsencode",
    "get_errno",
    "get_fdmax",
    "isblocking",
    "maxrss_to_kb",
    "maybe_fileno",
    "mem_rss",
    "send_offset",
    "setblocking",
    "spawnv_passfds",
    "uniq",
]

#: the module of Windows' system calls, where there is one
_winapi = None

#: what ``fileno()`` of an object without a descriptor raises
FILENO_ERRORS = (AttributeError, ValueError, UnsupportedOperation)

_BSD_WITH_FDESCFS = ("freebsd", "dragonfly")
#: where the system lists the descriptors of the asking process
_FD_DIR = (
    "/dev/fd"
    if sys.platform.startswith(("cygwin", "darwin", *_BSD_WITH_FDESCFS))
    else "/proc/self/fd"
)


def send_offset(fd: int, buf: memoryview, offset: int) -> int:
    """Write ``buf`` from ``offset`` on, as far as the descriptor takes it.

    :returns: the number of bytes written.
    :raises OSError: ``EAGAIN`` when a non-blocking descriptor takes nothing.

    Origin: billiard.
    """
    return os.write(fd, buf[offset:])


def maybe_fileno(f: Any) -> int | None:
    """The descriptor of a number or of an object with ``fileno()``; None if it has none.

    Origin: billiard.
    """
    # An int is by far the most common; the abstract class is for numpy's integers.
    if isinstance(f, int):
        return f
    from numbers import Integral

    if isinstance(f, Integral):
        return int(f)
    try:
        number: int = f.fileno()
    except FILENO_ERRORS:
        return None
    return number


def get_fdmax(default: int | None = None) -> int | None:
    """How many descriptors this process may have open.

    :param default: what to return where there is no limit. Origin: billiard.
    """
    try:
        return os.sysconf("SC_OPEN_MAX")
    except Exception:  # whatever it is: there is another way to ask
        import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return default if limit == resource.RLIM_INFINITY else limit


def uniq(it: Iterable[T]) -> Iterator[T]:
    """The first of every group of equal elements, in order. Origin: billiard."""
    return iter(dict.fromkeys(it))


def _dev_fd_is_fdescfs() -> bool:
    """Whether the listing is complete: without fdescfs mounted it has 0, 1 and 2 only."""
    try:
        return os.stat("/dev").st_dev != os.stat(_FD_DIR).st_dev
    except OSError:
        return False


def _open_fds() -> list[int] | None:
    """This process's descriptors in order, None where the system does not list them."""
    if sys.platform.startswith(_BSD_WITH_FDESCFS) and not _dev_fd_is_fdescfs():
        return None
    try:
        return sorted(int(name) for name in os.listdir(_FD_DIR) if name.isdigit())
    except OSError:
        return None


def close_open_fds(keep: Iterable[FileDescriptorLike | None] | None = None) -> None:
    """Close every descriptor of this process, 0 included, except those to keep.

    :param keep: numbers or objects with ``fileno()``; None entries are skipped.

    Costs as much as there are open descriptors, not as much as the limit allows. Never fails: a
    descriptor that cannot be closed is left. Origin: billiard.
    """
    kept = sorted({fd for fd in map(maybe_fileno, keep or ()) if fd is not None})
    listed = _open_fds()
    if listed is not None:
        for fd in listed:
            if fd not in kept:
                try:  # noqa: SIM105  (contextlib is dear to import)
                    os.close(fd)
                except OSError:
                    pass
        return
    # One close_range per gap: this is cheap on kernels that have the call.
    low = 0
    for fd in [*kept, get_fdmax(default=2048) or 2048]:
        if low < fd:
            os.closerange(low, fd)
        low = fd + 1


def get_errno(exc: BaseException) -> Any:
    """An exception's ``errno``, 0 if it has none. Origin: billiard."""
    return getattr(exc, "errno", 0)


def spawnv_passfds(path: str | bytes, args: Iterable[str | bytes], passfds: Iterable[int]) -> int:
    """Start a program that gets the standard descriptors and ``passfds``, and no others.

    :param path: the program.
    :param args: its arguments, the name first.
    :returns: the child's pid.
    :raises OSError: the program cannot be run (billiard's child ends with status 255 instead).

    Origin: billiard.
    """
    from ._core import spawn

    return spawn(fsencode(path), [fsencode(arg) for arg in args], sorted(passfds)).pid


def isblocking(handle: FileDescriptorLike) -> bool:
    """Whether reads and writes of a descriptor wait. Origin: billiard."""
    return not fcntl(handle, F_GETFL) & O_NONBLOCK


def setblocking(handle: FileDescriptorLike, blocking: Any) -> None:
    """Let reads and writes of a descriptor wait (true) or fail with ``EAGAIN`` (false).

    The flag belongs to the open file: everybody who shares the descriptor sees the change.
    Origin: billiard.
    """
    flags = fcntl(handle, F_GETFL)
    fcntl(handle, F_SETFL, flags & ~O_NONBLOCK if blocking else flags | O_NONBLOCK)


def maxrss_to_kb(v: SupportsInt) -> int | float:
    """The system's unit of ``ru_maxrss`` in KiB: Linux counts in KiB, the BSDs in bytes."""
    if sys.platform == "darwin" or "bsd" in sys.platform:
        return int(v) / 1024.0
    return int(v)


def mem_rss() -> int | float:
    """The most physical memory that this process has ever used, in KiB. Origin: billiard."""
    from resource import RUSAGE_SELF, getrusage

    return maxrss_to_kb(getrusage(RUSAGE_SELF).ru_maxrss)
