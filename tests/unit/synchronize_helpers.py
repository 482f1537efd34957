"""What the tests of locks share: patience, every kind of lock, and processes to kill."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

#: seconds after which something that should happen will not
LONG = 30.0
#: seconds in which something that should not happen would have
SHORT = 0.05

MAKERS: dict[str, Callable[[Any], Any]] = {
    "Lock": lambda ctx: ctx.Lock(),
    "robust": lambda ctx: ctx.Lock(robust=True),
    "RLock": lambda ctx: ctx.RLock(),
    "Semaphore": lambda ctx: ctx.Semaphore(1),
    "BoundedSemaphore": lambda ctx: ctx.BoundedSemaphore(1),
}


@contextmanager
def started(ctx: Any, target: Any, *args: Any) -> Iterator[Any]:
    """A process that has to end well, unless it was killed."""
    process = ctx.Process(target=target, args=args)
    process.start()
    try:
        yield process
        process.join(LONG)
        assert process.exitcode in (0, -signal.SIGKILL)
    finally:
        if process.is_alive():
            process.kill()
            process.join()


def kill(process: Any) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.join()
