"""What the tests of connections share: the other side in a thread, and bytes past the framing."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
import termios
import threading
from collections.abc import Callable, Iterator

from billiard.connection import Connection


@contextlib.contextmanager
def running(function: Callable[..., object], *args: object) -> Iterator[None]:
    """`function` in a thread, joined at the end."""
    thread = threading.Thread(target=function, args=args)
    thread.start()
    try:
        yield
    finally:
        thread.join(30)
        assert not thread.is_alive()


def unread(end: Connection) -> int:
    """Bytes that wait to be received."""
    number = bytearray(4)
    fcntl.ioctl(end.fileno(), termios.FIONREAD, number)
    return int.from_bytes(number, sys.byteorder)


@contextlib.contextmanager
def interrupted_once(reader: Connection) -> Iterator[None]:
    """This thread gets SIGALRM as soon as something waits to be received."""
    me = threading.get_ident()

    def interrupt() -> None:
        while not unread(reader):
            os.sched_yield()
        signal.pthread_kill(me, signal.SIGALRM)

    with running(interrupt):
        yield


def raw_write(end: Connection, data: bytes) -> None:
    assert os.write(end.fileno(), data) == len(data)
