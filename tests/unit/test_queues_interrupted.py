"""billiard.queues: exceptions that come in the middle, and locks that somebody else holds."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from queue import Empty, Full
from typing import Any

import pytest

import billiard
from billiard.exceptions import SoftTimeLimitExceeded
from billiard.queues import Queue

PATIENCE = 30
#: more than fits into the ring
BLOCKS = 100


class Raising:
    """Raises an exception when it is pickled, or unpickled."""

    def __init__(self, exc: BaseException, late: bool = False) -> None:
        self.exc, self.late = exc, late

    def __reduce__(self) -> Any:
        if not self.late:
            raise self.exc
        return raising, (self.exc,)


def raising(exc: BaseException) -> None:
    raise exc


@pytest.fixture(params=[0, 10], ids=["unbounded", "bounded"])
def q(request: pytest.FixtureRequest) -> Iterator[Any]:
    made = billiard.Queue(request.param)
    yield made
    made.close()
    made.join_thread()


@pytest.mark.parametrize(
    "exc", [SoftTimeLimitExceeded(), OSError(errno.EFBIG, "too large"), KeyboardInterrupt()]
)
def test_what_is_not_the_fault_of_an_object_is_raised_by_put(q: Any, exc: BaseException) -> None:
    with pytest.raises(type(exc)):
        q.put(Raising(exc))
    q.put(1)
    assert q.get(timeout=PATIENCE) == 1


class Interrupted(Queue):
    """The first call of `_start_thread` is interrupted."""

    interrupted = False

    def _start_thread(self) -> None:
        if not self.interrupted:
            self.interrupted = True
            raise LookupError
        super()._start_thread()


def put_blocks(q: Any, done: Any) -> None:
    interrupted = 0
    for i in range(BLOCKS):
        try:
            q.put((i, bytes(32_000)))
        except LookupError:
            interrupted += 1
    assert interrupted == 1
    done.set()


def test_what_waits_to_be_sent_is_sent_although_a_put_was_interrupted(ctx: Any) -> None:
    q, done = Interrupted(ctx=ctx), ctx.Event()
    process = ctx.Process(target=put_blocks, args=(q, done))
    process.start()
    assert done.wait(PATIENCE)
    assert [q.get(timeout=PATIENCE)[0] for _ in range(BLOCKS)] == list(range(BLOCKS))
    process.join()
    assert process.exitcode == 0
    q.close()


def test_get_many_loses_nothing_that_it_has_taken(q: Any) -> None:
    for obj in (1, 2, Raising(LookupError(), late=True), 3, 4):
        q.put(obj)
    with pytest.raises(LookupError):
        q.get_many(timeout=PATIENCE)
    assert not q.empty()
    assert q.get(timeout=PATIENCE) == 1
    found = []
    while not q.empty():
        found += q.get_many(timeout=PATIENCE)
    assert found == [2, 3, 4]


@pytest.mark.parametrize("arguments", [(True, 0.1), (False, None)])
def test_timeouts_hold_although_another_has_the_locks(q: Any, arguments: Any) -> None:
    q.put(1)
    raised = []

    def run() -> None:
        calls = [(Empty, q.get), (Empty, take_many), (Full, put), (Full, put_many)]
        for error, call in calls if q._maxsize == 10 else calls[:2]:
            try:
                call(*arguments)
            except error:
                raised.append(call)

    def take_many(block: bool, timeout: float | None) -> None:
        q.get_many(None, block, timeout)

    def put(block: bool, timeout: float | None) -> None:
        q.put(2, block, timeout)

    def put_many(block: bool, timeout: float | None) -> None:
        q.put_many([3, 4], block, timeout)

    with q._rlock, q._wlock:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert len(raised) == (4 if q._maxsize == 10 else 2)
    assert q.get_many() == [1]
