"""Signals that come while this thread waits for something."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from connection_helpers import running, unread

from billiard.connection import Connection

#: seconds in which what is waited for has begun
MOMENT = 0.05


class Interrupt(Exception):
    """What handlers raise that end a wait."""


def interrupt() -> None:
    raise Interrupt


@contextmanager
def _handled(handler: Callable[..., object]) -> Iterator[None]:
    """`handler` is that of SIGALRM; in the end no more is sent."""
    before = signal.signal(signal.SIGALRM, handler)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def alarms(seconds: float) -> Iterator[list[int]]:
    """A signal after so many seconds again and again, whose handler returns."""
    arrived: list[int] = []
    with _handled(lambda number, frame: arrived.append(number)):
        signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
        yield arrived


@contextmanager
def _handled_once(handler: Callable[[], object]) -> Iterator[threading.Event]:
    """`handler` is that of SIGALRM, once; whether it has been called."""
    called = threading.Event()

    def once(*_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        called.set()
        handler()

    with _handled(once):
        yield called


# Both send it until it is seen: a signal that comes just before a system call, or that the system
# gives to another thread, ends no wait of this one.


@contextmanager
def alarm(handler: Callable[[], object]) -> Iterator[None]:
    """`handler` is called once, by a signal, in a moment."""
    with _handled_once(handler):
        signal.setitimer(signal.ITIMER_REAL, MOMENT, MOMENT)
        yield


@contextmanager
def alarm_in_a_send(reader: Connection, handler: Callable[[], object]) -> Iterator[None]:
    """`handler` is called once, by a signal, in the middle of what this thread sends."""
    me = threading.get_ident()
    with _handled_once(handler) as called:

        def send_signals() -> None:
            while not unread(reader):
                os.sched_yield()
            while not called.is_set():
                signal.pthread_kill(me, signal.SIGALRM)
                called.wait(MOMENT)

        with running(send_signals):
            yield
