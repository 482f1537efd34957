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
def interrupted(reader: Connection, handler: Callable[[], object]) -> Iterator[None]:
    """`handler` is called once, by a signal, in the middle of what this thread sends."""
    me, called = threading.get_ident(), threading.Event()

    def once(*_: object) -> None:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        called.set()
        handler()

    def interrupt() -> None:
        while not unread(reader):
            os.sched_yield()
        # More than once: one just before a system call does not end it.
        while not called.is_set():
            signal.pthread_kill(me, signal.SIGALRM)
            called.wait(0.05)

    before = signal.signal(signal.SIGALRM, once)
    try:
        with running(interrupt):
            yield
    finally:
        signal.signal(signal.SIGALRM, before)


def raw_write(end: Connection, data: bytes) -> None:
    assert os.write(end.fileno(), data) == len(data)
