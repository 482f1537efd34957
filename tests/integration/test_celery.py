"""A real Celery worker on this package, judged by the results of its tasks."""

from __future__ import annotations

import signal
import time
from collections import Counter
from pathlib import Path
from uuid import uuid4

import pytest
from celery.exceptions import (
    SoftTimeLimitExceeded,
    TaskRevokedError,
    TimeLimitExceeded,
    WorkerLostError,
)
from worker import PATIENCE, Client, Settings, Watched, Worker

import billiard

pytestmark = [pytest.mark.celery, pytest.mark.timeout(240)]

WAYS = [
    Settings("fork-with-read"),
    Settings("fork-without-read", extension=False),
    Settings("spawn", start_method="spawn"),
    Settings("filesystem", broker="filesystem"),
]
every_way = pytest.mark.parametrize(
    "worker", WAYS, indirect=True, ids=lambda way: way.name, scope="module"
)


@pytest.fixture
def key() -> str:
    """A name for a meeting in redis."""
    return uuid4().hex


def serves(client: Client) -> bool:
    """Whether the worker does what it is there for; asked after something went wrong in it."""
    results = [client.send("add", n, n) for n in range(20)]
    return [result.get(timeout=PATIENCE) for result in results] == [2 * n for n in range(20)]


@every_way
def test_the_worker_runs_on_this_package_in_the_way_that_is_meant(worker: Worker) -> None:
    way = worker.settings
    assert worker.facts == {
        "billiard": billiard.__file__,
        "version": billiard.__version__,
        # without an event loop Celery takes the blocking pool
        "pool": "billiard.pool" if way.broker == "filesystem" else "celery.concurrency.asynpool",
        "start_method": way.start_method,
        "reads_into_buffer": way.extension,
    }


@every_way
def test_two_thousand_small_tasks(client: Client) -> None:
    results = [client.send("add", n, 1) for n in range(2000)]
    assert [result.get(timeout=PATIENCE) for result in results] == list(range(1, 2001))


@every_way
def test_an_exception_comes_with_its_traceback(client: Client) -> None:
    result = client.send("fail", "what went wrong")
    with pytest.raises(ValueError, match="what went wrong"):
        result.get(timeout=PATIENCE)
    assert "in innermost" in result.traceback
    assert "raise ValueError(text)" in result.traceback


@every_way
def test_an_exception_with_a_constructor_of_its_own_fails_only_its_task(client: Client) -> None:
    with pytest.raises(Exception, match=r"request.*403"):
        client.call("refuse")
    assert serves(client)


@every_way
def test_retries_until_success_and_until_they_are_used_up(client: Client) -> None:
    assert client.call("succeed_at", 3) == 3
    with pytest.raises(LookupError, match="retries: 2"):
        client.call("never_succeed")


@every_way
def test_soft_limit_is_an_exception_in_the_task(client: Client, key: str) -> None:
    assert client.call("hold_softly", key, soft_time_limit=1) == "cleaned up"
    with pytest.raises(SoftTimeLimitExceeded):
        client.call("hold", key, soft_time_limit=1)
    assert serves(client)


@every_way
def test_hard_limit_ends_the_process_and_another_takes_its_place(client: Client, key: str) -> None:
    result = client.send("hold", key, time_limit=1)
    with Watched(client.arrival(key)) as process:
        with pytest.raises(TimeLimitExceeded):
            result.get(timeout=PATIENCE)
        assert process.wait()
    assert serves(client)


@every_way
def test_revoke_terminates_the_running_task(client: Client, key: str) -> None:
    result = client.send("hold", key)
    with Watched(client.arrival(key)) as process:
        client.app.control.revoke(result.id, terminate=True, signal="SIGKILL")
        with pytest.raises(TaskRevokedError):
            result.get(timeout=PATIENCE)
        assert process.wait()
    assert result.state == "REVOKED"
    assert serves(client)


@every_way
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_killed_process_loses_its_task_and_the_worker_goes_on(
    client: Client, number: signal.Signals
) -> None:
    with pytest.raises(WorkerLostError, match=f"signal {number.value}"):
        client.call("die", number)
    assert serves(client)


@every_way
def test_grow_and_shrink(client: Client, key: str) -> None:
    before = len(client.inspect("stats")["pool"]["processes"])
    assert "ok" in client.control("pool_grow", 2)
    results = [client.send("hold", key) for _ in range(before + 2)]
    # all of them at once, so there are enough processes
    assert len({client.arrival(key) for _ in results}) == before + 2
    client.release(key, before + 2)
    assert [result.get(timeout=PATIENCE) for result in results] == ["released"] * (before + 2)

    assert answers_within(PATIENCE, lambda: client.inspect("active") == [])
    assert "ok" in client.control("pool_shrink", 2)
    assert answers_within(
        PATIENCE, lambda: len(client.inspect("stats")["pool"]["processes"]) == before
    )
    assert serves(client)


def answers_within(seconds: float, question) -> bool:  # type: ignore[no-untyped-def]
    """Ask the worker again and again (each time is a round trip) until the answer is yes."""
    deadline = time.monotonic() + seconds
    while not question():
        if time.monotonic() > deadline:
            return False
    return True


RECYCLING = [
    Settings(
        f"recycling-{way.name}",
        way.broker,
        way.start_method,
        way.extension,
        {"worker_max_tasks_per_child": 5, "worker_max_memory_per_child": 250_000},  # KiB
    )
    for way in WAYS
]
every_recycling_way = pytest.mark.parametrize(
    "worker", RECYCLING, indirect=True, ids=lambda way: way.name, scope="module"
)


@every_recycling_way
def test_max_tasks_per_child(client: Client) -> None:
    results = [client.send("pid") for _ in range(40)]
    tasks_of = Counter(result.get(timeout=PATIENCE) for result in results)
    assert max(tasks_of.values()) <= 5
    assert sum(tasks_of.values()) == 40


@every_recycling_way
def test_max_memory_per_child(client: Client) -> None:
    first = client.call("hog", 300)
    later = [client.send("pid") for _ in range(20)]
    assert first not in {result.get(timeout=PATIENCE) for result in later}


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_warm_shutdown_finishes_the_task_in_flight(
    way: Settings, redis_url: str, tmp_path: Path, key: str
) -> None:
    worker = Worker(way, redis_url, tmp_path)
    client = Client(worker)
    try:
        result = client.send("hold", key)
        client.arrival(key)
        worker.process.terminate()
        wait_for_line(worker.log, "Warm shutdown")
        assert worker.process.poll() is None
        client.release(key)
        assert result.get(timeout=PATIENCE) == "released"
        assert worker.process.wait(PATIENCE) == 0
    finally:
        client.close()
        worker.stop()


def wait_for_line(log: Path, text: str) -> None:
    """Follow the log until the text shows up."""
    deadline = time.monotonic() + PATIENCE
    while text not in log.read_text():
        assert time.monotonic() < deadline, f"no {text!r} in the log"
        time.sleep(0.05)
