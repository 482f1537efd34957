"""The corners of the native drive: what callers, signals and users' code may do to it at any point."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import billiard


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
