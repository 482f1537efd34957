"""billiard.pool: what may be passed to pools and their calls, and what iterables of callers do."""

from __future__ import annotations

import pickle
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from pool_tasks import (
    PATIENCE,
    TwoArguments,
    Unpicklable,
    add,
    count_up,
    eventually,
    pool_of,
    square,
)

import billiard

fork: Any = billiard.get_context("fork")


# ---- what may be passed ----


@pytest.mark.parametrize(
    "name",
    [
        "processes",
        "maxtasksperchild",
        "timeout",
        "soft_timeout",
        "lost_worker_timeout",
        "max_memory_per_child",
        "max_restarts",
        "max_restart_freq",
    ],
)
def test_numbers_are_no_bools_and_not_negative(name: str) -> None:
    for value in (True, False):
        with pytest.raises(TypeError, match="bool"):
            fork.Pool(**{name: value})
    with pytest.raises(ValueError, match=name):
        fork.Pool(**{name: -1})
    with pytest.raises((TypeError, ValueError)):
        fork.Pool(**{name: "many"})


@pytest.mark.parametrize("kwargs", [{"maxtasksperchild": 0}, {"maxtasksperchild": 1.5}])
def test_a_worker_does_a_whole_number_of_tasks(kwargs: Any) -> None:
    with pytest.raises(ValueError, match="maxtasksperchild"):
        fork.Pool(1, **kwargs)


@pytest.mark.parametrize("kwargs", [{"initializer": 5}, {"on_process_exit": "x"}])
def test_functions_must_be_callable(kwargs: Any) -> None:
    with pytest.raises(TypeError, match="callable"):
        fork.Pool(1, **kwargs)


def test_calls_check_what_they_get(pool: Any) -> None:
    for method in (pool.map, pool.imap, pool.imap_unordered, pool.starmap, pool.map_async):
        items = iter([1, 2])
        for chunksize in (0, -1):
            with pytest.raises(ValueError, match=r"Chunksize must be 1\+"):
                method(square, items, chunksize=chunksize)
        with pytest.raises(TypeError):
            method(square, items, chunksize=True)
        with pytest.raises(TypeError):
            method(square, items, chunksize=1.5)
        assert list(items) == [1, 2]
        with pytest.raises(TypeError):
            method(square, 5)
    for name in ("timeout", "soft_timeout", "lost_worker_timeout"):
        with pytest.raises(ValueError, match=name):
            pool.apply_async(square, (1,), **{name: -0.5})
        with pytest.raises(TypeError, match="bool"):
            pool.apply_async(square, (1,), **{name: True})
        with pytest.raises(TypeError):
            pool.apply_async(square, (1,), **{name: "soon"})
    for name in ("callback", "error_callback", "accept_callback", "timeout_callback"):
        with pytest.raises(TypeError, match="callable"):
            pool.apply_async(square, (1,), **{name: 5})
    for method in (pool.grow, pool.shrink):
        with pytest.raises(ValueError):
            method(-1)
        with pytest.raises(TypeError):
            method(True)
        method(0)
    assert not pool._cache


def test_a_closed_pool_says_so(pool: Any) -> None:
    pool.close()
    for call in (
        lambda: pool.apply(square, (1,)),
        lambda: pool.apply_async(square, (1,)),
        lambda: pool.map(square, [1]),
        lambda: pool.map_async(square, [1]),
        lambda: pool.starmap(add, [(1, 2)]),
        lambda: pool.starmap_async(add, [(1, 2)]),
        lambda: pool.imap(square, [1]),
        lambda: pool.imap_unordered(square, [1]),
        pool.__enter__,
    ):
        with pytest.raises(ValueError, match="Pool not running"):
            call()
    pool.join()
    pool.close()
    pool.terminate()
    pool.join()


def test_only_a_closed_pool_can_be_joined(pool: Any) -> None:
    with pytest.raises(ValueError, match="still running"):
        pool.join()


def test_pools_do_not_travel(pool: Any) -> None:
    with pytest.raises(NotImplementedError):
        pickle.dumps(pool)


def test_a_forked_child_cannot_use_its_parent_s_pool(pool: Any) -> None:
    def child() -> None:
        try:
            pool.apply_async(square, (1,))
        except RuntimeError:
            sys.exit(17)

    process = fork.Process(target=child)
    process.start()
    process.join(PATIENCE)
    assert process.exitcode == 17
    assert pool.apply(square, (2,)) == 4


def test_what_a_worker_cannot_be_sent_fails_its_own_job(pool: Any) -> None:
    for call in (
        lambda: pool.apply(square, (Unpicklable(),)),
        lambda: pool.map(square, [1, Unpicklable()], 1),
        lambda: next(pool.imap(square, [Unpicklable()])),
    ):
        with pytest.raises(RuntimeError, match="not this one"):
            call()
    with pytest.raises(TypeError, match="lock"):
        pool.apply(square, (threading.Lock(),))
    errors: list[Any] = []
    pool.apply_async(square, (Unpicklable(),), error_callback=errors.append).wait(PATIENCE)
    eventually(lambda: errors)
    assert errors[0].type is RuntimeError
    assert pool.map(square, [2]) == [4]
    assert not pool._cache


def test_something_that_is_no_function_fails_its_own_job(pool: Any) -> None:
    with pytest.raises(TypeError, match="not callable"):
        pool.apply(5)
    with pytest.raises(TypeError):
        pool.apply(square, (1, 2, 3))
    with pytest.raises(TypeError):
        pool.apply(square, 5)


# ---- the iterables of callers ----


class Failing:
    """Gives ``good`` items, then raises."""

    def __init__(self, good: int, length: int | None = None) -> None:
        self.good = good
        if length is not None:
            self.__class__ = type("Sized", (Failing,), {"__len__": lambda self: length})

    def __iter__(self) -> Iterator[int]:
        yield from range(self.good)
        raise TwoArguments(1, 2)


@pytest.mark.parametrize("method", ["imap", "imap_unordered"])
@pytest.mark.parametrize("good", [0, 1, 3])
def test_what_an_iterable_raises_is_raised_at_that_point(pool: Any, method: str, good: int) -> None:
    it = getattr(pool, method)(square, Failing(good))
    got = []
    with pytest.raises(TwoArguments):
        for _ in range(good + 1):
            got.append(next(it))
    assert method == "imap_unordered" or got == [x * x for x in range(good)]
    if method == "imap":
        with pytest.raises(StopIteration):
            next(it)
    eventually(lambda: not pool._cache)


def test_what_an_iterable_raises_fails_the_map(pool: Any) -> None:
    with pytest.raises(TwoArguments):
        pool.map(square, Failing(2))
    with pytest.raises(TwoArguments):
        pool.map(square, Failing(2, length=5), 1)
    with pytest.raises(TwoArguments):
        list(pool.imap(square, Failing(3), chunksize=2))
    assert pool.map(square, [2]) == [4]


def test_work_is_done_in_the_order_of_submission() -> None:
    with pool_of(fork, 1) as pool:
        before = pool.starmap_async(count_up, [()] * 2000, 1)
        assert pool.apply(count_up) == 2001
        assert before.get(PATIENCE)[-1] == 2000
