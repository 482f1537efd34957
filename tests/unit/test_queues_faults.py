"""billiard.queues: what forks, kills and ends of processes do to a queue."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty
from typing import Any

import pytest
from pool_tasks import eventually

import billiard
from billiard.connection import wait

ROOT = Path(billiard.__file__).parents[1]
#: seconds within which anything happens that happens at all
LONG = 60


def start(ctx: Any, target: Any, *args: Any) -> Any:
    process = ctx.Process(target=target, args=args)
    process.start()
    return process


def join(*processes: Any) -> None:
    for process in processes:
        process.join(LONG)
        assert process.exitcode == 0


def kill(*processes: Any) -> None:
    for process in processes:
        process.kill()
    for process in processes:
        process.join()


@pytest.fixture(params=[0, 50_000], ids=["short", "long"])
def size(request: pytest.FixtureRequest) -> int:
    """Bytes of a message beside its number: in the ring, or beside it."""
    found: int = request.param
    return found


def close(*queues: Any) -> None:
    for queue in queues:
        queue.close()
        queue.join_thread()


# --- fork --------------------------------------------------------------------------------------


def put_marks(q: Any, name: str, count: int, size: int) -> None:
    for number in range(count):
        q.put((name, number, bytes(size)))


def test_child_does_not_send_what_its_parent_still_has_to_move(ctx: Any) -> None:
    q = ctx.Queue()
    put_marks(q, "parent", 300, 20_000)  # more than the ring has room for
    assert q._thread is not None and q._buffer
    child = start(ctx, put_marks, q, "child", 300, 20_000)
    got = [q.get(timeout=LONG)[:2] for _ in range(600)]
    join(child)
    for name in ("parent", "child"):
        assert [number for who, number in got if who == name] == list(range(300))
    assert q.empty()
    close(q)


def fork_and_put(q: Any) -> None:
    fork = billiard.get_context("fork")
    children = [start(fork, put_marks, q, f"grandchild {n}", 100, 100) for n in range(2)]
    put_marks(q, "child", 100, 100)
    join(*children)


def test_children_of_children_share_the_queue(ctx: Any) -> None:
    q = ctx.Queue()
    child = start(ctx, fork_and_put, q)
    got = [q.get(timeout=LONG)[:2] for _ in range(300)]
    join(child)
    for name in ("child", "grandchild 0", "grandchild 1"):
        assert [number for who, number in got if who == name] == list(range(100))
    close(q)


def echo(there: Any, back: Any) -> None:
    while (item := there.get()) is not None:
        back.put(item)


def test_forks_while_threads_use_the_queue_hurt_nobody() -> None:
    fork = billiard.get_context("fork")
    q, there, back = fork.Queue(), fork.Queue(), fork.Queue()
    stop = threading.Event()

    def use() -> None:
        number = 0
        while not stop.is_set():
            q.put_many([bytes(5000)] * 300)
            assert len(q.get()) == 5000
            q.get_many(299)
            number += 1

    threads = [threading.Thread(target=use) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(20):
        child = start(fork, echo, there, back)
        there.put(number)
        assert back.get(timeout=LONG) == number
        there.put(None)
        join(child)
    stop.set()
    for thread in threads:
        thread.join(LONG)
    close(q, there, back)


# --- programs that close descriptors that are not theirs ---------------------------------------


def put_without_descriptors(q: Any) -> None:
    os.closerange(3, 4096)
    q.put("x")
    os._exit(0)


def test_a_message_of_a_process_that_has_closed_its_descriptors_is_announced(ctx: Any) -> None:
    q = ctx.Queue()
    assert wait([q._reader], 0) == []
    child = start(ctx, put_without_descriptors, q)
    assert wait([q._reader], LONG) == [q._reader]
    assert q.get(timeout=LONG) == "x"
    assert wait([q._reader], 0) == []
    child.join(LONG)
    close(q)


def get_without_descriptors(q: Any, failed: Any) -> None:
    os.closerange(3, 4096)
    try:
        q.get(timeout=LONG)
    except OSError as exc:
        failed.value = exc.errno
    os._exit(0)


def test_a_long_message_that_cannot_be_read_stays_where_it_is(ctx: Any) -> None:
    q, failed = ctx.Queue(), ctx.Value("i")
    q.put(bytes(200_000))
    child = start(ctx, get_without_descriptors, q, failed)
    child.join(LONG)
    assert failed.value == errno.EBADF
    assert len(q.get(timeout=LONG)) == 200_000
    close(q)


# --- processes that are stopped ----------------------------------------------------------------


def stop_with_lock(q: Any) -> None:
    with q._wlock:
        os.kill(os.getpid(), signal.SIGSTOP)


def is_stopped(process: Any) -> bool:
    status = Path(f"/proc/{process.pid}/stat").read_text()
    return status.rsplit(")", 1)[1].split()[0] == "T"


@contextlib.contextmanager
def lock_held_by_a_stopped_process(ctx: Any, q: Any) -> Iterator[None]:
    child = start(ctx, stop_with_lock, q)
    eventually(lambda: is_stopped(child))
    try:
        yield
    finally:
        os.kill(child.pid, signal.SIGCONT)
        join(child)


#: how often it is tried whether another thread runs: a busy machine may be slow to let it
LOOKS = 20


@pytest.fixture
def ticking() -> Iterator[list[int]]:
    """Counts how often another thread runs. None is forced to make way for another."""
    ticks, over = [0], threading.Event()

    def tick() -> None:
        while not over.wait(0.001):
            ticks[0] += 1

    interval = sys.getswitchinterval()
    sys.setswitchinterval(LONG)
    thread = threading.Thread(target=tick)
    thread.start()
    yield ticks
    over.set()
    thread.join()
    sys.setswitchinterval(interval)


def lets_others_run(ticking: list[int], action: Callable[[], object]) -> bool:
    """Whether another thread runs during an action."""
    before = ticking[0]
    for _ in range(LOOKS):
        action()
        if ticking[0] > before:
            return True
    return False


def test_who_waits_for_a_lock_in_order_to_count_lets_other_threads_run(
    ctx: Any, ticking: list[int]
) -> None:
    q = ctx.Queue()
    count = 100
    put_marks(q, "parent", count, 20_000)  # more than the ring has room for

    def look() -> None:
        assert q.qsize() == count

    with lock_held_by_a_stopped_process(ctx, q):
        assert lets_others_run(ticking, look)
    for _ in range(count):
        q.get(timeout=LONG)
    close(q)


def test_who_finds_a_watched_queue_empty_lets_other_threads_run(
    ctx: Any, ticking: list[int]
) -> None:
    q = ctx.Queue()
    assert wait([q._reader], 0) == []

    def look() -> None:
        with pytest.raises(Empty):
            q.get_nowait()

    with lock_held_by_a_stopped_process(ctx, q):
        assert lets_others_run(ticking, look)
    close(q)


# --- ends and kills ----------------------------------------------------------------------------


def put_and_tell(q: Any, count: int, size: int, ready: Any) -> None:
    put_marks(q, "victim", count, size)
    ready.set()
    time.sleep(LONG)


def test_what_a_killed_producer_had_put_arrives_as_far_as_the_ring_had_room(ctx: Any) -> None:
    q, ready = ctx.Queue(), ctx.Event()
    victim = start(ctx, put_and_tell, q, 400, 10_000, ready)
    assert ready.wait(LONG)
    assert q.qsize() == 400
    kill(victim)
    left = q.qsize()
    assert 50 < left < 400
    q.put("after")
    got = [q.get(timeout=LONG) for _ in range(left)]
    assert [number for _, number, _ in got] == list(range(left))
    assert q.get(timeout=LONG) == "after"
    assert (q.qsize(), q.empty()) == (0, True)
    close(q)


def test_places_of_a_killed_producer_are_given_back(ctx: Any) -> None:
    q, ready = ctx.Queue(400), ctx.Event()
    victim = start(ctx, put_and_tell, q, 400, 10_000, ready)
    assert ready.wait(LONG)
    assert q.full()
    kill(victim)
    assert not q.full()
    lost = 400 - q.qsize()
    for number in range(lost):
        q.put(number, timeout=LONG)
    assert q.full()
    assert len([q.get(timeout=LONG) for _ in range(400)]) == 400
    close(q)


def hold(lock: Any, ready: Any) -> None:
    lock.acquire()
    ready.set()
    time.sleep(LONG)


class LockOf:
    """A lock of a queue, for another process."""

    def __init__(self, q: Any, name: str) -> None:
        self.q, self.name = q, name

    def acquire(self) -> None:
        getattr(self.q, self.name).acquire()


@pytest.mark.parametrize("name", ["_rlock", "_wlock"])
def test_process_killed_inside_the_ring_holds_up_nobody(ctx: Any, name: str) -> None:
    q, ready = ctx.Queue(), ctx.Event()
    victim = start(ctx, hold, LockOf(q, name), ready)
    assert ready.wait(LONG)
    kill(victim)
    started = time.monotonic()
    q.put(1)
    assert q.get() == 1
    assert time.monotonic() - started < LONG
    close(q)


def test_join_does_not_wait_for_what_died_with_its_producer(ctx: Any) -> None:
    q, ready = ctx.JoinableQueue(), ctx.Event()
    victim = start(ctx, put_and_tell, q, 400, 10_000, ready)
    assert ready.wait(LONG)
    kill(victim)
    for _ in range(q.qsize()):
        q.get(timeout=LONG)
        q.task_done()
    q.join()
    close(q)


PARENT = """
import os, sys, time, billiard

def child(q):
    for number in range(400):
        q.put(bytes(10_000))
    os.write(1, b"%d\\n" % os.getpid())

if __name__ == "__main__":
    ctx = billiard.get_context(sys.argv[1])
    q = ctx.Queue()
    ctx.Process(target=child, args=(q,)).start()
    time.sleep(60)
"""


def test_producer_ends_when_nobody_is_left_to_get_anything(ctx: Any, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PARENT.replace("\\\\", "\\"))
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(program), ctx.get_start_method()]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pidfd = os.pidfd_open(int(parent.stdout.readline()))
        try:
            assert not wait([pidfd], 0.3), "it waits for a reader at its end"
            parent.kill()
            assert wait([pidfd], LONG)
        finally:
            os.close(pidfd)


# --- stress ------------------------------------------------------------------------------------


class Ledger:
    """Who put and who got how much, in shared memory: it outlives those who write in it."""

    MOST = 500

    def __init__(self, ctx: Any) -> None:
        self.put = ctx.RawArray("q", self.MOST)
        self.got = ctx.RawArray("q", self.MOST * self.MOST)
        self.sums = ctx.RawArray("q", self.MOST * self.MOST)
        self.total = ctx.RawArray("q", self.MOST)
        self.wrong = ctx.RawValue("q", 0)

    def received(self, producer: int) -> tuple[int, int]:
        return sum(self.got[producer :: self.MOST]), sum(self.sums[producer :: self.MOST])


def produce(q: Any, ledger: Ledger, me: int, sizes: tuple[int, ...]) -> None:
    number = 0
    while True:
        q.put((me, number, bytes(sizes[number % len(sizes)])))
        number += 1
        ledger.put[me] = number


def consume(q: Any, ledger: Ledger, me: int) -> None:
    last: dict[int, int] = {}
    while (item := q.get()) is not None:
        producer, number, content = item
        if last.get(producer, -1) >= number or any(content[:100]):
            ledger.wrong.value += 1
        last[producer] = number
        place = me * Ledger.MOST + producer
        ledger.sums[place] += number
        ledger.got[place] += 1
        ledger.total[me] += 1


SIZES = {"short": (0, 10, 700), "mixed": (0, 3000, 40_000, 10, 1_500_000), "long": (70_000,)}


@pytest.mark.stress
@pytest.mark.parametrize("limit", [0, 20], ids=["endless", "bounded"])
@pytest.mark.parametrize("sizes", SIZES)
def test_no_kill_costs_more_than_a_message_or_holds_up_anybody(
    ctx: Any, sizes: str, limit: int
) -> None:
    q, ledger = ctx.Queue(limit), Ledger(ctx)
    end = time.monotonic() + float(os.environ.get("BILLIARD_STRESS_SECONDS", "6")) / 12
    numbers = {produce: 0, consume: 0}
    running: dict[Any, list[Any]] = {produce: [], consume: []}

    def begin(target: Any) -> None:
        more = (SIZES[sizes],) if target is produce else ()
        running[target].append(start(ctx, target, q, ledger, numbers[target], *more))
        numbers[target] += 1

    kills = waiting = 0
    try:
        for target in (produce, produce, consume, consume):
            begin(target)
        while time.monotonic() < end and max(numbers.values()) < Ledger.MOST:
            time.sleep(random.uniform(0, 0.03))
            before = sum(ledger.total)
            target = random.choice((produce, consume))
            if target is produce:
                waiting += q.qsize()  # some of it may have had no room in the ring
            kill(running[target].pop(0))
            kills += 1
            begin(target)
            deadline = time.monotonic() + LONG
            while sum(ledger.total) == before and time.monotonic() < deadline:
                time.sleep(0.001)
            assert sum(ledger.total) > before, f"everyone waits after {kills} kills"
        waiting += q.qsize()
        kill(*running[produce])
        running[produce].clear()
        for _ in running[consume]:
            q.put(None, timeout=LONG)
        join(*running[consume])
    finally:
        kill(*running[produce], *running[consume])
    assert q.qsize() == 0
    assert ledger.wrong.value == 0
    lost = 0
    for producer in range(numbers[produce]):
        (got, total), put = ledger.received(producer), ledger.put[producer]
        assert got <= put + 1
        if got == put:  # the last one put may not be counted, and another one lost
            assert put * (put - 1) // 2 <= total <= put * (put + 1) // 2
        lost += max(0, put - got)
    assert lost <= kills + 2 + (waiting if not limit or sizes != "short" else 0)
    # The chunks of the dead have been used again.
    assert os.fstat(q._block.segment.fd).st_blocks * 512 < 256 << 20
    close(q)


@pytest.mark.stress
@pytest.mark.skipif(os.sysconf("SC_AVPHYS_PAGES") * 4096 < 12 << 30, reason="takes 9 GiB")
def test_messages_of_more_than_two_gib(ctx: Any) -> None:
    there, back = ctx.Queue(), ctx.Queue()
    child = start(ctx, echo, there, back)
    item = bytes((2 << 30) + 5)
    there.put(item)
    assert back.get(timeout=300) == item
    there.put(None)
    join(child)
    close(there, back)
