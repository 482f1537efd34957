"""Workers that end before they are ready."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

import billiard


def die_until(deaths: Any, wanted: int, how: str) -> None:
    with deaths.get_lock():
        if deaths.value >= wanted:
            return
        deaths.value += 1
    if how == "raise":
        raise LookupError("the initializer")
    os.kill(os.getpid(), signal.SIGKILL)


def test_workers_killed_before_they_are_ready_are_replaced(ctx: Any) -> None:
    """Also before the first one was, and more often than an initializer may fail."""
    deaths = ctx.Value("i", 0)
    with ctx.Pool(2, die_until, (deaths, 8, "kill")) as pool:
        assert pool.apply_async(abs, (-1,)).get(60) == 1
        assert deaths.value == 8
    pool.join()


@pytest.mark.parametrize("how", ["raise", "kill"])
def test_a_pool_whose_workers_never_get_ready_gives_up(how: str) -> None:
    context = billiard.get_context("fork")
    deaths = context.Value("i", 0)
    with context.Pool(2, die_until, (deaths, 1 << 20, how)) as pool:
        with pytest.raises(LookupError if how == "raise" else billiard.WorkerLostError):
            pool.apply_async(abs, (-1,)).get(60)
        assert deaths.value < 200
    pool.join()
