"""The Celery application that the worker under test imports. The tests send to it by name.

Tasks that have to meet the test halfway do it through redis: they announce themselves on one list
and wait on another.
"""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import redis
import whole_messages  # noqa: F401  (the client's messages are whole, and so are the worker's)
from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded
from celery.signals import worker_ready

import billiard

settings = json.loads(os.environ["BILLIARD_TEST_CELERY"])
app = Celery("celery_app")
app.conf.update(settings)

#: what `hog` took, so that it stays taken
taken: list[bytearray] = []


@worker_ready.connect
def tell_the_test(sender: Any, **_: Any) -> None:
    """Write down what the worker runs on; the end of the pipe is what the test waits for."""
    from celery.concurrency import asynpool

    facts = {
        "billiard": billiard.__file__,
        "version": billiard.__version__,
        "pool": type(sender.pool._pool).__module__,
        "start_method": billiard.get_start_method(),
        "reads_into_buffer": asynpool.readcanbuf,
    }
    descriptor = int(os.environ["BILLIARD_TEST_READY"])
    os.write(descriptor, json.dumps(facts).encode())
    os.close(descriptor)


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.task
def pid() -> int:
    return os.getpid()


class Refused(Exception):
    """Takes two arguments, so that it cannot be rebuilt from its message alone."""

    def __init__(self, what: str, code: int) -> None:
        super().__init__(f"{what} refused with {code}")
        self.what = what
        self.code = code


def innermost(text: str) -> None:
    raise ValueError(text)


@app.task
def fail(text: str) -> None:
    innermost(text)


@app.task
def refuse() -> None:
    raise Refused("request", 403)


@app.task(bind=True, max_retries=None)
def succeed_at(self: Any, attempt: int) -> int:
    """Fail until the given attempt; the first is 0."""
    if self.request.retries < attempt:
        raise self.retry(countdown=0)
    return int(self.request.retries)


@app.task(bind=True, max_retries=2)
def never_succeed(self: Any) -> None:
    raise self.retry(exc=LookupError(f"retries: {self.request.retries}"), countdown=0)


def announce(key: str) -> redis.Redis:
    client = redis.Redis.from_url(settings["result_backend"], socket_timeout=None)
    client.rpush(f"{key}:arrived", os.getpid())
    return client


@app.task
def hold(key: str) -> str:
    """Say which process this is, and stay until the test lets go."""
    with announce(key) as client:
        released = client.blpop([f"{key}:release"], timeout=100)
    return "released" if released else "forgotten"


@app.task
def hold_softly(key: str) -> str:
    """Like `hold`, but the soft limit is an answer."""
    try:
        return hold(key)  # type: ignore[no-any-return]
    except SoftTimeLimitExceeded:
        return "cleaned up"


@app.task
def die(number: int = signal.SIGKILL) -> None:
    os.kill(os.getpid(), number)


@app.task
def hog(megabytes: int) -> int:
    """Take memory and keep it."""
    block = bytearray(megabytes << 20)
    block[::4096] = b"x" * len(block[::4096])
    taken.append(block)
    return os.getpid()
