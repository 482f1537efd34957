"""billiard.queues: Queue, JoinableQueue, SimpleQueue in and between processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import queue
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from alarms import Interrupt, alarm, alarm_in_a_send, interrupt

import billiard
from billiard import queues
from billiard.connection import wait

ROOT = Path(billiard.__file__).parents[1]


@contextlib.contextmanager
def child(ctx: Any, target: Callable[..., object], *args: object) -> Iterator[Any]:
    """A process that must end well."""
    process = ctx.Process(target=target, args=args)
    process.start()
    try:
        yield process
    finally:
        process.join(60)
        assert process.exitcode == 0


@contextlib.contextmanager
def closing(*members: Any) -> Iterator[None]:
    """Close queues, and wait until nothing of theirs runs."""
    try:
        yield
    finally:
        for member in members:
            member.close()
            if isinstance(member, queues.Queue):
                member.join_thread()


@pytest.fixture(params=["Queue", "JoinableQueue"])
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def q(kind: str) -> Iterator[Any]:
    made = getattr(billiard, kind)()
    with closing(made):
        yield made


# --- one process -------------------------------------------------------------------------------


def test_objects_come_out_in_order(q: Any) -> None:
    items = [None, 0, "x", b"", [1, {"a": 2}], b"x" * 100_000, 1.5]
    for item in items:
        q.put(item)
    assert [q.get(timeout=10) for _ in items] == items


def test_put_takes_the_object_as_it_is(q: Any) -> None:
    item = [1]
    q.put(item)
    item.append(2)
    assert q.get(timeout=10) == [1]


def test_put_without_maxsize_never_waits(q: Any) -> None:
    for number in range(20):
        q.put((number, bytes(100_000)))
    for number in range(2000):
        q.put(number)
    assert [q.get(timeout=10)[0] for _ in range(20)] == list(range(20))
    assert [q.get(timeout=10) for _ in range(2000)] == list(range(2000))


def test_qsize_counts_what_was_put_and_not_taken(q: Any) -> None:
    assert (q.qsize(), q.full()) == (0, False)
    for number in range(5):
        q.put(number)
    assert q.qsize() == 5
    q.get(timeout=10)
    assert q.qsize() == 4
    for _ in range(4):
        q.get(timeout=10)
    assert (q.qsize(), q.empty()) == (0, True)


def test_empty_queue_raises_empty_in_time(q: Any) -> None:
    for call in (
        q.get_nowait,
        lambda: q.get(False),
        lambda: q.get(True, 0),
        lambda: q.get(True, -1),
    ):
        with pytest.raises(queue.Empty):
            call()
    start = time.monotonic()
    with pytest.raises(queue.Empty):
        q.get(timeout=0.2)
    assert 0.2 <= time.monotonic() - start < 30


def test_full_queue_raises_full_in_time(kind: str) -> None:
    q = getattr(billiard, kind)(2)
    with closing(q):
        q.put(1)
        q.put(2)
        assert q.full()
        for call in (lambda: q.put_nowait(3), lambda: q.put(3, False), lambda: q.put(3, True, 0)):
            with pytest.raises(queue.Full):
                call()
        start = time.monotonic()
        with pytest.raises(queue.Full):
            q.put(3, timeout=0.2)
        assert 0.2 <= time.monotonic() - start < 30
        assert q.get(timeout=10) == 1
        q.put(3)
        assert [q.get(timeout=10), q.get(timeout=10)] == [2, 3]


def test_full_queue_lets_put_in_when_something_is_taken() -> None:
    q = billiard.Queue(1)
    with closing(q):
        q.put(0)
        thread = threading.Thread(target=lambda: [q.put(n) for n in range(1, 50)])
        thread.start()
        assert [q.get(timeout=10) for _ in range(50)] == list(range(50))
        thread.join()


def test_threads_share_a_queue() -> None:
    q = billiard.Queue()
    with closing(q):
        threads = [
            threading.Thread(target=lambda n=n: [q.put((n, i)) for i in range(300)])
            for n in range(4)
        ]
        for thread in threads:
            thread.start()
        got = [q.get(timeout=20) for _ in range(1200)]
        for thread in threads:
            thread.join()
    for n in range(4):
        assert [i for m, i in got if m == n] == list(range(300))


class Unpicklable:
    def __reduce__(self) -> Any:
        raise RuntimeError("not this one")


def test_unpicklable_object_costs_itself_alone(q: Any, capfd: pytest.CaptureFixture[str]) -> None:
    q.put(1)
    q.put(Unpicklable())
    q.put(2)
    assert [q.get(timeout=10), q.get(timeout=10)] == [1, 2]
    assert q.qsize() == 0
    assert "RuntimeError: not this one" in capfd.readouterr().err


def test_unpicklable_object_goes_to_the_hook_and_gives_its_place_back() -> None:
    seen = []

    class Observed(queues.Queue):
        def _on_queue_feeder_error(self, e: BaseException, obj: Any) -> None:
            seen.append((type(e), type(obj)))

    q = Observed(1, ctx=billiard.get_context())
    with closing(q):
        q.put(Unpicklable())
        q.put("fits", timeout=10)
        assert q.get(timeout=10) == "fits"
    assert seen == [(RuntimeError, Unpicklable)]


def test_unpicklable_object_is_no_task() -> None:
    class Silent(queues.JoinableQueue):
        def _on_queue_feeder_error(self, e: BaseException, obj: Any) -> None:
            pass

    q = Silent(ctx=billiard.get_context())
    with closing(q):
        q.put(Unpicklable())
        q.join()
        with pytest.raises(ValueError):
            q.task_done()


def test_closed_queue_says_so(kind: str) -> None:
    q = getattr(billiard, kind)()
    with pytest.raises(ValueError, match="not closed"):
        q.join_thread()
    q.put(1)
    q.close()
    q.close()
    for call in (lambda: q.put(1), lambda: q.put_nowait(1), q.get, q.get_nowait):
        with pytest.raises(ValueError, match="is closed"):
            call()
    q.join_thread()


def test_reader_can_be_waited_for(q: Any) -> None:
    assert wait([q._reader], 0) == []
    q.put(1)
    assert wait([q._reader], 10) == [q._reader]
    poll = select.poll()
    poll.register(q._reader, select.POLLIN)
    assert poll.poll(10_000)
    assert q.get(timeout=10) == 1
    assert wait([q._reader], 0) == []


def test_only_pickled_while_spawning(q: Any) -> None:
    with pytest.raises(RuntimeError, match="inheritance"):
        pickle.dumps(q)


def test_context_is_required() -> None:
    for cls in (queues.Queue, queues.JoinableQueue, queues.SimpleQueue):
        with pytest.raises(TypeError, match="ctx"):
            cls()


@pytest.mark.parametrize("limit", [0, 1])
def test_whether_to_wait_is_told_by_an_integer(kind: str, limit: int) -> None:
    member = getattr(billiard, kind)(limit)
    with closing(member):
        for bad in (None, 1.5, "x"):
            with pytest.raises(TypeError):
                member.put(1, bad)
            with pytest.raises(TypeError):
                member.get(bad)
        with pytest.raises(OverflowError):
            member.put(1, 2**31)
        assert member.empty()


def test_the_limit_is_an_integer_of_31_bits(kind: str) -> None:
    for bad, error in ((2**31, OverflowError), (1.5, TypeError), (float("inf"), TypeError)):
        with pytest.raises(error):
            getattr(billiard, kind)(bad)


def test_many_objects_go_in_and_come_out_at_once(q: Any) -> None:
    assert q.put_many(range(1000)) == 1000
    assert q.get_many(3) == [0, 1, 2]
    assert q.get_many(0) == []
    assert q.get_many() == list(range(3, 1000))
    for call in (lambda: q.get_many(block=False), lambda: q.get_many(5, True, 0.01)):
        with pytest.raises(queue.Empty):
            call()


def test_many_objects_are_put_as_far_as_there_are_places(capfd: pytest.CaptureFixture[str]) -> None:
    q = billiard.Queue(5)
    with closing(q):
        assert q.put_many([1, Unpicklable(), 2]) == 2
        assert "not this one" in capfd.readouterr().err
        assert q.put_many("abcdef", block=False) == 3
        with pytest.raises(queue.Full):
            q.put_many("def", True, 0.01)
        assert q.get_many() == [1, 2, "a", "b", "c"]


def test_limit_counts_objects_and_not_bytes() -> None:
    q = billiard.Queue(200)
    with closing(q):
        for number in range(200):
            q.put_nowait((number, "x" * 30_000))
        assert q.full()
        assert q.qsize() == 200
        with pytest.raises(queue.Full):
            q.put_nowait(1)
        for number in range(200):
            assert q.get(timeout=10)[0] == number
        assert (q.qsize(), q.empty()) == (0, True)


def test_every_count_is_exact_while_the_ring_is_full(q: Any) -> None:
    for number in range(400):
        q.put((number, "x" * 10_000))
        assert q.qsize() == number + 1
    for number in range(400):
        assert not q.empty()
        assert q.get_nowait()[0] == number
        assert q.qsize() == 399 - number
    assert q.empty()


class Chunk:
    """An object with buffers that protocol 5 leaves out of the pickle."""

    def __init__(self, *buffers: Any) -> None:
        self.buffers = buffers

    def __reduce_ex__(self, protocol: Any) -> Any:
        assert protocol == 5
        return Chunk, tuple(map(pickle.PickleBuffer, self.buffers))


def test_buffers_travel_beside_the_pickle(q: Any) -> None:
    small, large, fixed = bytearray(b"s" * 10), bytearray(os.urandom(300_000)), os.urandom(100_000)
    for _ in range(2):
        q.put(Chunk(small, large, fixed, memoryview(large)[1000:200_000]))
        got = q.get(timeout=10).buffers
        assert [bytes(buffer) for buffer in got] == [small, large, fixed, large[1000:200_000]]
        assert [memoryview(buffer).readonly for buffer in got] == [False, False, True, False]
    got[1][0] ^= 1
    assert got[1] != large


def test_put_takes_buffers_as_they_are(q: Any) -> None:
    large = bytearray(200_000)
    q.put(Chunk(large))
    large[0] = 1
    assert q.get(timeout=10).buffers[0][0] == 0


def test_reader_is_ready_exactly_while_there_is_something_to_get(q: Any) -> None:
    q.put(0)
    assert wait([q._reader], 0)
    for number in range(1000):
        q.put(number + 1)
        assert q.get(timeout=10) == number
        assert wait([q._reader], 0)
        if number % 100 == 0:
            assert q.get(timeout=10) == number + 1
            assert not wait([q._reader], 0)
            with pytest.raises(queue.Empty):
                q.get_nowait()
            q.put(number + 1)
            assert wait([q._reader], 0)
    assert select.select([], [q._writer], [], 0)[1]


def test_asyncio_waits_for_the_reader(q: Any) -> None:
    async def main() -> list[int]:
        loop, found = asyncio.get_running_loop(), []
        done = loop.create_future()

        def readable() -> None:
            found.append(q.get_nowait())
            if len(found) == 100:
                done.set_result(None)

        loop.add_reader(q._reader, readable)
        producer = threading.Thread(target=lambda: [q.put(n) for n in range(100)])
        producer.start()
        try:
            await asyncio.wait_for(done, 30)
        finally:
            loop.remove_reader(q._reader)
            producer.join()
        return found

    assert asyncio.run(main()) == list(range(100))


def test_ends_have_the_look_of_connections(q: Any) -> None:
    q._writer.send([1])
    q._writer.send_bytes(pickle.dumps([2]))
    assert q._poll()
    assert q._reader.recv() == [1]
    assert pickle.loads(q._reader.recv_bytes()) == [2]
    assert not q._poll(0.01)
    assert q._reader.readable and not q._reader.writable
    q.close()
    assert q._reader.closed and q._writer.closed
    for call in (q._reader.fileno, q._writer.fileno, q._poll, q.empty):
        with pytest.raises(OSError, match="closed"):
            call()


def test_locks_of_a_queue_hold_it_up(q: Any) -> None:
    q.put(1)
    got: list[Any] = []
    with q._rlock:
        reader = threading.Thread(target=lambda: got.append(q.get()))
        reader.start()
        reader.join(0.1)
        assert not got
    reader.join(30)
    assert got == [1]
    with q._wlock:
        writer = threading.Thread(target=q.put, args=(2,))
        writer.start()
        writer.join(0.1)
        assert q.empty()
    assert q.get(timeout=30) == 2
    writer.join()


def test_queue_that_is_let_go_of_leaves_nothing_open() -> None:
    def cycle() -> None:
        q = billiard.JoinableQueue()
        q.put(bytes(100_000))
        q.put(1)

    def used() -> tuple[int, int]:
        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[0])
        return len(os.listdir("/proc/self/fd")), pages

    cycle()
    fds, pages = used()
    for _ in range(3000):
        cycle()
    assert used()[0] == fds
    assert used()[1] < pages + 4096


# --- processes ---------------------------------------------------------------------------------


def put_range(q: Any, name: int, count: int) -> None:
    for number in range(count):
        q.put((name, number))


def get_count(q: Any, count: int, results: Any) -> None:
    results.put([q.get(timeout=60) for _ in range(count)])


def test_order_per_producer_is_kept(ctx: Any, kind: str) -> None:
    q = getattr(ctx, kind)()
    with closing(q), child(ctx, put_range, q, 0, 500), child(ctx, put_range, q, 1, 500):
        got = [q.get(timeout=60) for _ in range(1000)]
    for name in range(2):
        assert [number for who, number in got if who == name] == list(range(500))


def test_every_object_goes_to_one_consumer(ctx: Any) -> None:
    q, results = ctx.Queue(), ctx.Queue()
    with (
        closing(q, results),
        child(ctx, get_count, q, 300, results),
        child(ctx, get_count, q, 300, results),
        child(ctx, put_range, q, 0, 600),
    ):
        got = results.get(timeout=60) + results.get(timeout=60)
    assert sorted(got) == [(0, number) for number in range(600)]


def forward(source: Any, target: Any) -> None:
    while (item := source.get(timeout=60)) is not None:
        target.put(item)


@pytest.mark.parametrize("size", [0, 10, 4000, 70_000, 5_000_000])
def test_payloads_of_any_size_come_back(ctx: Any, size: int) -> None:
    there, back = ctx.Queue(), ctx.Queue()
    with closing(there, back), child(ctx, forward, there, back):
        for _ in range(3):
            item = os.urandom(size)
            there.put(item)
            assert back.get(timeout=60) == item
        there.put(None)


@pytest.mark.parametrize("maker", ["fork", "spawn", "forkserver"])
def test_queues_of_any_context_work_in_any_child(ctx: Any, maker: str) -> None:
    made = billiard.get_context(maker)
    there, back = made.Queue(3), made.JoinableQueue()
    with closing(there, back), child(ctx, forward, there, back):
        there.put("x")
        assert back.get(timeout=60) == "x"
        back.task_done()
        back.join()
        there.put(None)


def put_one(q: Any) -> None:
    q.put("from the child")


def test_child_forked_from_a_process_that_has_put_can_put() -> None:
    fork = billiard.get_context("fork")
    q = fork.Queue()
    with closing(q):
        q.put("from the parent")
        assert q.get(timeout=10) == "from the parent"
        with child(fork, put_one, q):
            assert q.get(timeout=60) == "from the child"


def get_for_ever(q: Any, ready: Any) -> None:
    ready.release()
    while True:
        q.get()


@pytest.mark.parametrize("kind", ["Queue", "JoinableQueue", "SimpleQueue"])
def test_killed_consumer_holds_up_nobody(ctx: Any, kind: str) -> None:
    q = getattr(ctx, kind)()
    ready = ctx.Semaphore(0)
    with closing(q):
        victims = [ctx.Process(target=get_for_ever, args=(q, ready)) for _ in range(2)]
        for victim in victims:
            victim.start()
        for _ in victims:
            assert ready.acquire(timeout=60)
        for victim in victims:
            victim.kill()
            victim.join()
        q.put("for the living")
        reader = threading.Thread(target=lambda: got.append(q.get()), daemon=True)
        got: list[Any] = []
        reader.start()
        reader.join(30)
        assert got == ["for the living"]


def put_in_a_handler(q: Any) -> None:
    with (
        pytest.raises(RuntimeError, match="signal handler"),
        alarm_in_a_send(q._reader, lambda: q.put("from the handler")),
    ):
        q.put(bytes(1_000_000))


def test_put_in_a_handler_that_interrupts_a_put_is_an_error_not_a_deadlock(ctx: Any) -> None:
    q = ctx.SimpleQueue()
    with closing(q), child(ctx, put_in_a_handler, q):
        pass


def put_and_end(q: Any, count: int, size: int) -> None:
    for number in range(count):
        q.put((number, bytes(size)))


def test_everything_put_arrives_although_the_producer_has_ended(ctx: Any) -> None:
    q = ctx.Queue()
    with closing(q), child(ctx, put_and_end, q, 200, 10_000):
        assert [q.get(timeout=60)[0] for _ in range(200)] == list(range(200))


def put_and_leave(q: Any) -> None:
    q.cancel_join_thread()
    for _ in range(200):
        q.put(bytes(10_000))


def test_cancel_join_thread_lets_a_producer_end_with_nobody_reading(ctx: Any) -> None:
    q = ctx.Queue()
    with closing(q), child(ctx, put_and_leave, q):
        pass


def test_creator_ends_although_nobody_reads() -> None:
    code = "import billiard; q = billiard.Queue(); [q.put(bytes(10_000)) for _ in range(200)]"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=env, check=True, timeout=30)


def task_done_for(q: Any, count: int) -> None:
    for _ in range(count):
        q.get(timeout=60)
        q.task_done()


def test_join_waits_for_every_task(ctx: Any) -> None:
    q = ctx.JoinableQueue()
    with closing(q), child(ctx, task_done_for, q, 100):
        for number in range(100):
            q.put(number)
        q.join()
        assert q.empty()
        with pytest.raises(ValueError, match="too many times"):
            q.task_done()


def test_join_of_a_queue_without_tasks_returns() -> None:
    q = billiard.JoinableQueue()
    with closing(q):
        q.join()


def test_interrupted_get_loses_nothing(q: Any) -> None:
    with pytest.raises(Interrupt), alarm(interrupt):
        q.get()
    q.put("still there")
    assert q.get(timeout=10) == "still there"


# --- SimpleQueue -------------------------------------------------------------------------------


def test_simple_queue_carries_objects(ctx: Any) -> None:
    there, back = ctx.SimpleQueue(), ctx.SimpleQueue()
    with closing(there, back), child(ctx, simple_forward, there, back):
        assert back.empty()
        for item in (1, "x" * 200_000, {"a": None}):
            there.put(item)
            assert back.get() == item
        there.put(None)


def simple_forward(source: Any, target: Any) -> None:
    assert not target._poll()
    while (item := source.get()) is not None:
        target.put(item)


@pytest.mark.parametrize("make", [billiard.SimpleQueue, queues._SimpleQueue])
def test_closed_simple_queue_says_so(make: Callable[[], Any]) -> None:
    q = make()
    q.put(1)
    assert not q.empty()
    q.close()
    q.close()
    assert q._reader.closed
    assert q._writer.closed
    for call in (q.get, lambda: q.put(1), q.empty):
        with pytest.raises(OSError, match="closed"):
            call()


def test_payloads_are_pickles() -> None:
    q = billiard.SimpleQueue()
    with closing(q):
        q.put([1])
        assert pickle.loads(q.get_payload()) == [1]
        q.send_payload(pickle.dumps([2]))
        assert q.get() == [2]


def test_pool_s_queue_has_a_non_blocking_end_and_no_locks() -> None:
    inward, outward = queues._SimpleQueue(wnonblock=True), queues._SimpleQueue(rnonblock=True)
    with closing(inward, outward):
        assert os.get_blocking(inward._reader.fileno())
        assert not os.get_blocking(inward._writer.fileno())
        assert not os.get_blocking(outward._reader.fileno())
        assert os.get_blocking(outward._writer.fileno())
        assert inward._rlock is inward._wlock is None
        with pytest.raises(BlockingIOError):
            outward.get()
