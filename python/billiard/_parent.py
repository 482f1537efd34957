"""What a child knows of the process that started it."""

from __future__ import annotations

from . import _core
from .process import BaseProcess


class ParentProcess(BaseProcess):
    """The process that started this one, for `process.parent_process()`. Process-local.

    The descriptor to wait with is opened at first use. `start` (see `_core.process_start_time`) is
    None where the process is the kernel's parent of this one, too.
    """

    _sentinel: int

    def __init__(self, name: str, pid: int, start: int | None) -> None:
        self._identity = ()
        self._name = name
        self._pid = pid
        self._start = start
        self._parent_pid = None
        self._popen = None
        self._closed = False
        self._config = {}

    @property
    def ident(self) -> int:
        """The process number."""
        return self._pid

    pid = ident

    @property
    def sentinel(self) -> int:
        """A descriptor that becomes readable when the parent ends."""
        try:
            return self._sentinel
        except AttributeError:
            self._sentinel = _core.watch_process(self._pid, self._start)
            return self._sentinel

    def is_alive(self) -> bool:
        """Whether the parent still runs."""
        from .connection import wait

        return not wait([self.sentinel], timeout=0)

    def join(self, timeout: float | None = None) -> None:
        """Wait until the parent has ended, at most `timeout` seconds."""
        from .connection import wait

        wait([self.sentinel], timeout)
