"""Storms for pools: clients who use a pool in every way, and bullies who hurt its workers.

```
 client threads ──jobs of all kinds──► pool ──► workers ◄──SIGKILL, SIGSTOP ... ── bully thread
       │ outcomes
       ▼
     Tally: right, excused (a task that was hit), wrong
```

A storm proves that every job ends (clients wait with a timeout), that no value is wrong, and that
no more jobs fail than the bully can have hit.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

from pool_tasks import PATIENCE, PicklesOnly, Unpicklable, eventually, forever, make, square

from billiard.exceptions import WorkerLostError
from billiard.pool import MaybeEncodingError

#: seconds that the longest storm lasts; the others take a tenth, but at least half a second
SECONDS = float(os.environ.get("BILLIARD_STRESS_SECONDS", "3"))
SHORT = max(0.5, SECONDS / 10)
#: how many clients use a pool at once
CLIENTS = 4
MEGABYTE = 1 << 20

Job = Callable[[Any, random.Random, "Tally"], None]


class Tally:
    """What has become of the jobs. Process-local, used by all clients."""

    def __init__(self, *excuses: type[BaseException]) -> None:
        self.excuses = excuses
        self.right = 0
        self.excused = 0
        self.wrong: list[str] = []
        self._lock = threading.Lock()

    def take(self, outcome: Callable[[], Any], is_right: Callable[[Any], object]) -> str:
        """Wait for an outcome and note it; says what it was."""
        complaint = ""
        try:
            value = outcome()
        except self.excuses:
            verdict = "excused"
        except BaseException as exc:
            verdict, complaint = "wrong", repr(exc)
        else:
            verdict = "right" if is_right(value) else "wrong"
            complaint = f"wrong value {value!r}"[:200]
        with self._lock:
            if verdict == "wrong":
                self.wrong.append(complaint)
            else:
                setattr(self, verdict, getattr(self, verdict) + 1)
        return verdict

    def complain(self, text: str) -> None:
        with self._lock:
            self.wrong.append(text)


# ---- kinds of jobs: each submits some, and waits for their outcomes ----


def numbers(dice: random.Random, most: int = 12) -> list[int]:
    return [dice.randrange(10_000) for _ in range(dice.randint(1, most))]


def nap_and_square(n: int) -> int:
    time.sleep(0.002)
    return n * n


def applies(pool: Any, dice: random.Random, tally: Tally) -> None:
    mine = numbers(dice)
    results = [pool.apply_async(dice.choice((square, nap_and_square)), (n,)) for n in mine]
    for n, result in zip(mine, results, strict=True):
        tally.take(lambda r=result: r.get(PATIENCE), lambda v, n=n: v == n * n)


def applies_with_limits(pool: Any, dice: random.Random, tally: Tally) -> None:
    """Limits that nobody reaches."""
    mine = numbers(dice)
    limits = {"soft_timeout": 2 * PATIENCE, "timeout": 3 * PATIENCE}
    results = [pool.apply_async(nap_and_square, (n,), **limits) for n in mine]
    for n, result in zip(mine, results, strict=True):
        tally.take(lambda r=result: r.get(PATIENCE), lambda v, n=n: v == n * n)


def applies_with_callbacks(pool: Any, dice: random.Random, tally: Tally) -> None:
    """Each job calls back once, with its value or its failure, and after it was accepted."""
    mine, heard = numbers(dice), SimpleQueue[tuple[str, int, Any]]()

    def tell(what: str, i: int) -> Callable[..., None]:
        return lambda *args: heard.put((what, i, args[0]))

    results = [
        pool.apply_async(
            nap_and_square,
            (n,),
            callback=tell("value", i),
            error_callback=tell("error", i),
            accept_callback=tell("accepted", i),
        )
        for i, n in enumerate(mine)
    ]
    verdicts = [
        tally.take(lambda r=result: r.get(PATIENCE), lambda v, n=n: v == n * n)
        for n, result in zip(mine, results, strict=True)
    ]
    story: dict[int, list[tuple[str, Any]]] = {i: [] for i in range(len(mine))}
    while not all(any(w != "accepted" for w, _ in told) for told in story.values()):
        what, i, value = heard.get(timeout=PATIENCE)
        story[i].append((what, value))
    for i, told in story.items():
        if verdicts[i] == "right" and told != [("accepted", told[0][1]), ("value", mine[i] ** 2)]:
            tally.complain(f"callbacks of a job that was done: {told}")
        if verdicts[i] == "excused" and told[-1][0] != "error":
            tally.complain(f"callbacks of a job that has failed: {told}")


def maps(pool: Any, dice: random.Random, tally: Tally) -> None:
    mine = numbers(dice, 60)
    chunksize = dice.choice((None, 1, 7))
    result = pool.map_async(nap_and_square, mine, chunksize)
    tally.take(lambda: result.get(PATIENCE), lambda v: v == [n * n for n in mine])


def starmaps(pool: Any, dice: random.Random, tally: Tally) -> None:
    mine = [(n, 2) for n in numbers(dice, 30)]
    result = pool.starmap_async(pow, mine, dice.choice((None, 1, 3)))
    tally.take(lambda: result.get(PATIENCE), lambda v: v == [n**2 for n, _ in mine])


def imaps(pool: Any, dice: random.Random, tally: Tally) -> None:
    """A task that is lost has its place in the order; the others go on."""
    mine = numbers(dice, 30)
    iterator = pool.imap(nap_and_square, iter(mine))
    for n in mine:
        tally.take(lambda: iterator.next(PATIENCE), lambda v, n=n: v == n * n)


def imaps_unordered(pool: Any, dice: random.Random, tally: Tally) -> None:
    mine = numbers(dice, 30)
    iterator = pool.imap_unordered(nap_and_square, iter(mine))
    squares = sorted(n * n for n in mine)
    for _ in mine:
        # Removing it tells that it was there, and not there twice.
        tally.take(lambda: iterator.next(PATIENCE), lambda v: squares.remove(v) is None)


def chunked_imaps(pool: Any, dice: random.Random, tally: Tally) -> None:
    mine = numbers(dice, 30)
    tally.take(
        lambda: list(pool.imap(nap_and_square, mine, chunksize=4)),
        lambda v: v == [n * n for n in mine],
    )


def megabytes(pool: Any, dice: random.Random, tally: Tally) -> None:
    """A megabyte there and another back."""
    mine = numbers(dice, 4)
    results = [pool.apply_async(megabyte_after, (megabyte_of(n), n)) for n in mine]
    for n, result in zip(mine, results, strict=True):
        tally.take(lambda r=result: r.get(PATIENCE), lambda v, n=n: v == megabyte_of(n + 1))


def megabyte_of(n: int) -> bytes:
    return n.to_bytes(4, "big") * (MEGABYTE // 4)


def megabyte_after(data: bytes, n: int) -> bytes:
    assert data == megabyte_of(n)
    return megabyte_of(n + 1)


def arrays(pool: Any, dice: random.Random, tally: Tally) -> None:
    """Four megabytes of numpy there, changed there, and back."""
    import numpy as np  # not in every worker that is spawned

    mine = numbers(dice, 3)
    results = [pool.apply_async(increase, (np.full(MEGABYTE // 2, float(n)),)) for n in mine]
    for n, result in zip(mine, results, strict=True):
        tally.take(lambda r=result: r.get(PATIENCE), lambda v, n=n: is_full_of(v, n + 1.0))


def increase(array: Any) -> Any:
    array += 1  # what a task gets is its own, and it can write to it
    return array


def is_full_of(array: Any, value: float) -> bool:
    return len(array) == MEGABYTE // 2 and bool((array == value).all()) and array.flags.writeable


def strange_results(pool: Any, dice: random.Random, tally: Tally) -> None:
    """Results that cannot be sent or cannot be read fail for themselves."""
    results = [pool.apply_async(make, (kind,)) for kind in (PicklesOnly, int, Unpicklable)]
    for result, strange in zip(results, (True, False, True), strict=True):
        tally.take(lambda r=result, s=strange: encoding_error(r) if s else r.get(PATIENCE), is_zero)


def encoding_error(result: Any) -> int:
    try:
        result.get(PATIENCE)
    except MaybeEncodingError:
        return 0
    return 1


def is_zero(value: int) -> bool:
    return value == 0


# ---- tasks that do not listen ----


def hold_the_gil(seconds: float) -> None:
    """Sleep in C code that does not let go of the interpreter."""
    import ctypes

    ctypes.PyDLL(None).usleep(int(seconds * 1e6))


def backtrack() -> None:
    """Compute in C code that does not let go of the interpreter."""
    import re

    re.match(r"(a|aa)+$", "a" * 60 + "b")


def ignore_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    forever()


# ---- which jobs there are ----

SMALL: tuple[Job, ...] = (
    applies,
    applies_with_limits,
    applies_with_callbacks,
    maps,
    starmaps,
    imaps,
    imaps_unordered,
    chunked_imaps,
)
LARGE: tuple[Job, ...] = (megabytes, arrays)
ALL: tuple[Job, ...] = (*SMALL, *LARGE, strange_results)


# ---- clients ----


def use(pool: Any, tally: Tally, seconds: float, kinds: Iterable[Job] = ALL) -> None:
    """Use a pool from several threads, for so long, and wait for all that was begun.

    Longer on a machine that is so slow that nothing has succeeded.
    """
    begin, kinds = time.monotonic(), list(kinds)
    failures: list[BaseException] = []

    def client(dice: random.Random) -> None:
        try:
            while not tally.wrong:
                elapsed = time.monotonic() - begin
                if elapsed > (seconds if tally.right else seconds + PATIENCE):
                    break
                dice.choice(kinds)(pool, dice, tally)
        except BaseException as exc:
            failures.append(exc)

    clients = [threading.Thread(target=client, args=(random.Random(),)) for _ in range(CLIENTS)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    assert not failures, failures
    assert not tally.wrong, tally.wrong[:5]


# ---- bullies ----


def workers(pool: Any) -> list[int]:
    """The pids of the workers that a pool has."""
    return [worker.pid for worker in list(pool._pool) if worker.pid]


class Bully:
    """A thread that does something to a random worker again and again while it is entered.

    :param pause: seconds between two deeds on average; from nothing to twice as much.
    """

    def __init__(self, pool: Any, pause: float) -> None:
        self.pool = pool
        self.pause = pause
        #: how many deeds have been done
        self.count = 0
        self.dice = random.Random()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Bully:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            if candidates := self.candidates():
                with suppress(ProcessLookupError):  # it may have gone by itself
                    self.hurt(self.dice.choice(candidates))
                    self.count += 1
            if self._over.wait(2 * self.pause * self.dice.random()):
                return

    def candidates(self) -> list[int]:
        return workers(self.pool)

    def hurt(self, pid: int) -> None:
        raise NotImplementedError


class Killer(Bully):
    """Kills each worker once."""

    signum = signal.SIGKILL

    def __init__(self, pool: Any, pause: float, signum: signal.Signals = signal.SIGKILL) -> None:
        super().__init__(pool, pause)
        self.signum = signum
        self._victims: set[int] = set()

    def candidates(self) -> list[int]:
        return [pid for pid in super().candidates() if pid not in self._victims]

    def hurt(self, pid: int) -> None:
        os.kill(pid, self.signum)
        self._victims.add(pid)

    def __exit__(self, *exc_info: object) -> None:
        super().__exit__(*exc_info)
        # One that has not heard of it yet may still begin with a task.
        eventually(lambda: not self._victims.intersection(workers(self.pool)))


class Stopper(Bully):
    """Stops workers for a moment."""

    def hurt(self, pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(0.05 * self.dice.random())
        finally:
            os.kill(pid, signal.SIGCONT)


# ---- what holds before and after ----


def started(pool: Any) -> Any:
    """A pool whose workers have all begun to work."""
    count = len(pool._pool)
    eventually(lambda: len(set(pool.map(pid_after_a_moment, range(2 * count), 1))) == count)
    return pool


def pid_after_a_moment(_: object) -> int:
    time.sleep(0.01)
    return os.getpid()


def check_alive(pool: Any, processes: int) -> None:
    """A pool that has been through a storm is whole, and has forgotten all jobs."""
    assert pool.map(square, range(100), 1) == [n * n for n in range(100)]
    eventually(lambda: len(workers(pool)) == processes)
    eventually(lambda: not pool._cache)


def lost() -> Tally:
    """A tally that excuses tasks whose worker was killed."""
    return Tally(WorkerLostError)
