"""What the tests of connections share: the other side in a thread, and bytes past the framing."""

from __future__ import annotations

import contextlib
import fcntl
import os
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


def raw_write(end: Connection, data: bytes) -> None:
    assert os.write(end.fileno(), data) == len(data)
