"""Start method `fork`, and what all start methods have in common.

```
 parent                                children
 _core.fork_all(n) ── n times Child    a number each ──► process._bootstrap() ──► os._exit(status)
```
"""

from __future__ import annotations

import gc
import os
import sys

from . import _core, _standin, process
from .common import TERM_SIGNAL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .process import BaseProcess

    #: forks so many times; returns what `_core.fork_all` does
    Fork = Callable[[int], list[_core.Child | OSError] | int]

__all__ = ["Popen"]

#: the number of SIGKILL, without the `signal` module's enums
_SIGKILL = 9


def flush_standard_streams() -> None:
    """What is buffered here must not be written a second time by a child."""
    for stream in (sys.stdout, sys.stderr):
        try:  # noqa: SIM105  (contextlib is dear to import)
            stream.flush()
        except (AttributeError, ValueError):
            pass  # there is none, or it is closed


class Popen:
    """A started process, by fork (origin: multiprocessing).

    `pid`, `returncode` (None until somebody has seen it end) and `sentinel`, a descriptor that is
    readable once the process has ended; None after `close`.
    """

    method = "fork"
    sentinel: int | None = None
    sentinel_is_lent = False
    pid: int

    def __init__(self, process_obj: BaseProcess) -> None:
        flush_standard_streams()
        self.returncode: int | None = None
        self._launch(process_obj)

    def duplicate_for_child(self, fd: int) -> int:
        """Have `fd` in the child too; returns what stands for it in the pickle."""
        return fd

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        """The exit code, or None if the process runs; `flag` 0 waits for it.

        None for ever if other code (a handler of SIGCHLD) has reaped the process.
        """
        if self.returncode is None:
            self.returncode = self._child.poll() if flag & os.WNOHANG else self._child.wait()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for the end, at most `timeout` seconds; returns what `poll` does."""
        if self.returncode is None:
            self.returncode = self._child.wait(timeout)
        return self.returncode

    def _send_signal(self, signal: int) -> None:
        if self.returncode is None:
            try:
                self._child.send_signal(signal)
            except OSError:
                # Not ours to signal any more; that does not matter if it is about to end.
                if self.wait(timeout=0.1) is None:
                    raise

    def terminate(self) -> None:
        """Send SIGTERM, or the signal that `REMAP_SIGTERM` names."""
        self._send_signal(TERM_SIGNAL)

    def kill(self) -> None:
        """Send SIGKILL."""
        self._send_signal(_SIGKILL)

    @classmethod
    def _of(cls, child: _core.Child) -> Popen:
        """For a child that is there already."""
        popen = cls.__new__(cls)
        popen.returncode = None
        popen._adopt(child)
        return popen

    def _adopt(self, child: _core.Child) -> None:
        self._child = child
        self.pid = child.pid
        self.sentinel = child.sentinel

    def _launch(self, process_obj: BaseProcess) -> None:
        [child] = _fork_children([process_obj], _core.fork_all)
        if isinstance(child, OSError):
            raise child
        self._adopt(child)

    def lend_sentinel(self) -> int:
        """The sentinel, for somebody who may use it after the process has been joined."""
        self.sentinel_is_lent = True
        if self.sentinel is None:
            self.sentinel = self._child.reopen()
        return self.sentinel

    def close(self) -> None:
        """Close the sentinel. The exit code, if it is known, stays known."""
        if self.sentinel is not None:
            self.sentinel = None
            self._child.close()


def _fork_children(process_objs: Sequence[BaseProcess], fork: Fork) -> list[_core.Child | OSError]:
    """Fork a child for each process; what became of each. In the children: do not return."""
    if sys.is_finalizing():
        raise RuntimeError("can't fork at interpreter shutdown")
    many = len(process_objs)
    for _ in range(many):
        sys.audit("os.fork")
    process._make_no_input()
    _standin.prepared(process.current_process)
    if gc.isenabled() and gc.get_count()[0] > gc.get_threshold()[0] // 2:
        # Soon due on both sides of the fork, and then for many times the price: it writes to all
        # young objects, whose pages would have to be copied first.
        gc.collect(0)
    forked = fork(many)
    if not isinstance(forked, int):
        return forked
    status = 1
    try:
        status = process_objs[forked]._bootstrap()
    finally:
        os._exit(status & 0xFF)


def launch_all(process_objs: Sequence[BaseProcess], fork: Fork) -> list[Popen | OSError]:
    """Start processes by forks that follow each other at once; errors are in their places."""
    flush_standard_streams()
    children = _fork_children(process_objs, fork)
    return [child if isinstance(child, OSError) else Popen._of(child) for child in children]
