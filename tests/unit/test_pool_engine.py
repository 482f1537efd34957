"""The corners of the native drive: what callers, signals and users' code may do to it at any point."""

from __future__ import annotations

import gc
import threading
import time
import warnings
import weakref
from typing import Any

import pytest

import billiard
import billiard.pool
from billiard.exceptions import SoftTimeLimitExceeded


def ident(x: Any) -> Any:
    return x


def fail() -> None:
    raise ValueError("on purpose")


class Witness:
    """Something to see the end of."""


def test_a_failure_that_was_raised_does_not_keep_the_frame_that_asked() -> None:
    witnesses = []

    def ask(result: Any) -> None:
        witness = Witness()
        witnesses.append(weakref.ref(witness))
        try:
            result.get(30)
        except Exception:
            pass
        # The frame knows the result, which knows the exception, which knows the frame.

    with billiard.get_context("fork").Pool(1) as pool:
        ask(pool.apply_async(fail))
        lost = pool.apply_async(ident, (lambda: None,))
        lost.cancel()
        ask(lost)
        del lost
        gc.collect()
        assert [witness() for witness in witnesses] == [None, None]


def _is_collected(pool_of: Any) -> bool:
    """Whether a pool that nobody has closed goes away with its last job."""
    pool = billiard.get_context("fork").Pool(1)
    result, known = pool_of(pool), weakref.ref(pool)
    threads = list(pool._drive.handlers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del pool
        deadline = time.monotonic() + 10
        while known() is not None and time.monotonic() < deadline:
            gc.collect()
            time.sleep(0.005)
    for thread in threads:
        thread.stop(10)
    del result
    return known() is None


def test_a_pool_whose_job_was_cancelled_can_be_collected() -> None:
    def cancelled(pool: Any) -> Any:
        result = pool.apply_async(time.sleep, (100,))
        assert result.cancel()
        return result

    assert _is_collected(cancelled)


def test_a_pool_whose_job_could_not_be_sent_can_be_collected() -> None:
    assert _is_collected(lambda pool: pool.apply_async(ident, (threading.Lock(),)))


def _begin_badly() -> None:
    raise ValueError("long " * 100_000)


def test_an_initializer_s_exception_arrives_however_long_it_is() -> None:
    with billiard.get_context("fork").Pool(1, _begin_badly) as pool:
        with pytest.raises(billiard.pool.MaybeEncodingError) as caught:
            pool.apply_async(ident, (1,)).get(30)
    assert "ValueError" in str(caught.value)


def _inner_soft_limit() -> str:
    with billiard.get_context("fork").Pool(1) as pool:
        try:
            pool.apply_async(time.sleep, (20,), soft_timeout=0.05).get(30)
        except SoftTimeLimitExceeded:
            return "limited"
    return "not limited"


def test_soft_limits_hold_in_the_pool_of_a_task() -> None:
    with billiard.get_context("fork").Pool(1) as pool:
        assert pool.apply_async(_inner_soft_limit).get(60) == "limited"
