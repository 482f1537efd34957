"""Start method `forkserver`: a fork of a process without threads and the parent's state."""

from __future__ import annotations

import os

from . import _core, forkserver, popen_fork, spawn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from .process import BaseProcess

__all__ = ["Popen"]


class _DupFd:
    """Stands for a descriptor in the pickle: the child finds it at a place in its list."""

    def __init__(self, ind: int) -> None:
        self.ind = ind

    def detach(self) -> int:
        """The descriptor, which is the caller's from now on."""
        fds = forkserver.get_inherited_fds()
        assert fds is not None
        return fds[self.ind]


class Popen(popen_fork.Popen):
    """A started process, forked by the fork server (origin: multiprocessing)."""

    method = "forkserver"
    DupFd = _DupFd

    def __init__(self, process_obj: BaseProcess) -> None:
        self._fds: list[int] = []
        super().__init__(process_obj)

    def duplicate_for_child(self, fd: int) -> int:
        """Have `fd` in the child too; returns its place in the list of descriptors."""
        self._fds.append(fd)
        return len(self._fds) - 1

    def _order(self, process_obj: BaseProcess) -> tuple[bytes, list[int]]:
        """What the fork server has to be told: a message for the child, descriptors."""
        process_obj._parent_start = _core.process_start_time(os.getpid())
        return spawn._message(self, process_obj), self._fds

    def _launch(self, process_obj: BaseProcess) -> None:
        [child] = forkserver._forkserver._start_children([self._order(process_obj)])
        if isinstance(child, OSError):
            raise child
        self._adopt(child)


def launch_all(process_objs: Iterable[BaseProcess]) -> list[Popen | OSError]:
    """Start processes with one round trip to the fork server; errors are in their places."""
    popen_fork.flush_standard_streams()
    popens: list[Popen | OSError] = []
    orders = []
    for process_obj in process_objs:
        popen = Popen.__new__(Popen)
        popen._fds, popen.returncode = [], None
        orders.append(popen._order(process_obj))
        popens.append(popen)
    for i, child in enumerate(forkserver._forkserver._start_children(orders)):
        popen_or_error = popens[i]
        if isinstance(child, OSError):
            popens[i] = child
        elif isinstance(popen_or_error, Popen):
            popen_or_error._adopt(child)
    return popens
