#!/usr/bin/env python3
"""Objects from one process to another: through extents of shared memory, and through a pipe.

    python benches/payload.py [CASE ...] [--reference PYTHON] [--rounds 3] [--scale 0.5]

Ours sends references over a connection, a few at a time, and the messages in extents of one
segment. The others pickle into a connection. `*_read` looks at every byte on arrival; `*_kept`
keeps all that arrives, so that no memory is used twice.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any

from _ruler import amount, case, main

now = time.perf_counter
MEGABYTE = 1 << 20
#: messages under way
WINDOW = 4


def forget(obj: Any, kept: list[Any]) -> None:
    pass


def read(obj: Any, kept: list[Any]) -> None:
    obj.sum()


def keep(obj: Any, kept: list[Any]) -> None:
    kept.append(obj)


def rate(mp: Any, obj: Any, number: int, use: Callable[[Any, list[Any]], None]) -> float:
    """MB/s of `number` messages, after some that do not count."""
    ctx = mp.get_context("fork")
    mine, other = ctx.Pipe()
    core = getattr(mp, "_core", None)
    ours = core is not None and hasattr(core, "ExtentSender")
    sender: Any = core.ExtentSender() if core is not None and ours else None
    warm = 0 if use is keep else 2 * WINDOW
    target = receive_extents if ours else receive_pipe
    process = ctx.Process(target=target, args=(mp, other, sender, warm, number, use))
    process.start()
    other.close()
    size = getattr(obj, "nbytes", None) or len(obj)
    send = send_extents(mp, mine, sender) if ours else mine.send
    start = now()
    for index in range(warm + number):
        if index == warm and warm:
            start = now()
        send(obj)
    assert mine.recv() == "done" if not ours else drain(mine)
    seconds = now() - start
    process.join()
    return float(number * size / 1e6 / seconds)


def drain(conn: Any) -> bool:
    while conn.recv() != "done":
        pass
    return True


def send_extents(mp: Any, conn: Any, sender: Any) -> Callable[[Any], None]:
    pickler = mp.reduction.ForkingPickler
    under_way = 0

    def send(obj: Any) -> None:
        nonlocal under_way
        if under_way == WINDOW:
            conn.recv()
            under_way -= 1
        conn.send(sender.send(pickler, obj))
        under_way += 1

    return send


def receive_extents(
    mp: Any, conn: Any, sender: Any, warm: int, number: int, use: Callable[[Any, list[Any]], None]
) -> None:
    receiver = mp._core.ExtentReceiver(os.dup(sender.fd), 0)
    kept: list[Any] = []
    for _ in range(warm + number):
        use(receiver.receive(conn.recv()), kept)
        conn.send(None)
    conn.send("done")


def receive_pipe(
    mp: Any, conn: Any, sender: Any, warm: int, number: int, use: Callable[[Any, list[Any]], None]
) -> None:
    kept: list[Any] = []
    for _ in range(warm + number):
        use(conn.recv(), kept)
    conn.send("done")


def array(size: int) -> Any:
    import numpy as np

    return np.full(size // 8, 1.5)


@case("MB/s", better="high")
def bytes_100kb(mp: Any, scale: float) -> float:
    return rate(mp, os.urandom(100_000), amount(4000, scale), forget)


@case("MB/s", better="high")
def bytes_1mb(mp: Any, scale: float) -> float:
    return rate(mp, os.urandom(MEGABYTE), amount(1000, scale), forget)


@case("MB/s", better="high")
def bytes_1mb_kept(mp: Any, scale: float) -> float:
    return rate(mp, os.urandom(MEGABYTE), amount(400, scale), keep)


@case("MB/s", better="high")
def array_256kb_read(mp: Any, scale: float) -> float:
    return rate(mp, array(MEGABYTE // 4), amount(2000, scale), read)


@case("MB/s", better="high")
def array_1mb_read(mp: Any, scale: float) -> float:
    return rate(mp, array(MEGABYTE), amount(1000, scale), read)


@case("MB/s", better="high")
def array_2mb_read(mp: Any, scale: float) -> float:
    return rate(mp, array(2 * MEGABYTE), amount(500, scale), read)


@case("MB/s", better="high")
def array_4mb_read(mp: Any, scale: float) -> float:
    return rate(mp, array(4 * MEGABYTE), amount(300, scale), read)


@case("MB/s", better="high")
def array_16mb_read(mp: Any, scale: float) -> float:
    return rate(mp, array(16 * MEGABYTE), amount(100, scale), read)


@case("MB/s", better="high")
def array_64mb_read(mp: Any, scale: float) -> float:
    return rate(mp, array(64 * MEGABYTE), amount(24, scale), read)


@case("MB/s", better="high")
def array_64mb_kept(mp: Any, scale: float) -> float:
    return rate(mp, array(64 * MEGABYTE), amount(12, scale), keep)


if __name__ == "__main__":
    sys.exit(main(__file__))
