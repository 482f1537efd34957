"""What the tests of pools have their workers do."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

#: seconds within which everything that must happen has happened
PATIENCE = 60.0


def eventually(condition: Callable[[], object], patience: float = PATIENCE) -> Any:
    """Wait until something is true of another process or thread."""
    deadline = time.monotonic() + patience
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.005)
    return found


@contextmanager
def pool_of(ctx: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
    """A pool that is terminated and gone in the end."""
    pool = ctx.Pool(*args, **kwargs)
    try:
        yield pool
    finally:
        pool.terminate()
        pool.join()


class Gate:
    """An event that can be sent in a task's arguments: a file that is there or not."""

    def __init__(self, directory: Path) -> None:
        self.path = str(directory / uuid4().hex)

    def set(self) -> None:
        with open(self.path, "w"):
            pass

    def is_set(self) -> bool:
        return os.path.exists(self.path)

    def wait(self, timeout: float = PATIENCE) -> bool:
        deadline = time.monotonic() + timeout
        while not self.is_set():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.002)
        return True


def square(x: Any) -> Any:
    return x * x


def add(a: int, b: int = 0) -> int:
    return a + b


def pid(*args: Any) -> int:
    return os.getpid()


def fail(*args: Any) -> None:
    raise LookupError(*args)


def fail_with(exc: BaseException) -> None:
    raise exc


def square_unless(x: int, bad: int = 3) -> int:
    if x == bad:
        raise LookupError(x)
    return x * x


def die(*args: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave(status: Any) -> None:
    sys.exit(status)


def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def forever(*args: Any) -> None:
    while True:
        time.sleep(1)


def wait_for(gate: Gate, value: Any = None) -> Any:
    assert gate.wait()
    return value


def set_and_wait(begun: Gate, go_on: Gate, value: Any = None) -> Any:
    begun.set()
    assert go_on.wait()
    return value


def count_up() -> int:
    """How many tasks this worker has done, this one included."""
    GLOBAL.append(None)
    return len(GLOBAL)


def descriptors(*args: Any) -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


class TwoArguments(Exception):
    """An exception that pickles, and that no unpickler can rebuild."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(one)
        self.two = two


def fail_twice() -> None:
    raise TwoArguments(1, 2)


class Unpicklable:
    def __reduce__(self) -> Any:
        raise RuntimeError("not this one")


class PicklesOnly:
    """Something that cannot be unpickled."""

    def __reduce__(self) -> Any:
        return int, ("not a number",)


class ExitsWhenUnpickled:
    def __reduce__(self) -> Any:
        return sys.exit, (7,)


def make(kind: type) -> Any:
    return kind()


def fail_unpicklable() -> None:
    raise ValueError(Unpicklable())


GLOBAL: list[Any] = []


def initialize(*values: Any) -> None:
    GLOBAL.extend(values)


def initialized() -> list[Any]:
    return GLOBAL


def initialize_badly(what: str) -> None:
    raise LookupError(what)


def initialize_once(counter: Any) -> None:
    with counter.get_lock():
        counter.value += 1
        if counter.value > 1:
            raise LookupError("only once")


def print_unflushed(text: str) -> None:
    sys.stdout.write(text)


def put(queue: Any, value: Any) -> None:
    queue.put(value)


def in_grandchild(ctx_name: str, x: int) -> int:
    import billiard

    ctx: Any = billiard.get_context(ctx_name)
    queue = ctx.SimpleQueue()
    process = ctx.Process(target=put, args=(queue, x * x))
    process.start()
    result: int = queue.get()
    process.join()
    queue.close()
    return result


_hoard: list[bytearray] = []


def allocate(mib: int, keep: bool = False) -> int:
    block = bytearray(mib << 20)
    block[::4096] = b"x" * len(block[::4096])
    if keep:
        _hoard.append(block)
    return os.getpid()


def note_exit(queue: Any) -> Callable[[int, int], None]:
    return ExitNote(queue)


class ExitNote:
    """An ``on_process_exit`` that tells."""

    def __init__(self, queue: Any) -> None:
        self.queue = queue

    def __call__(self, pid: int, exitcode: int) -> None:
        self.queue.put((pid, exitcode))


def catch_soft_limit(begun: Any) -> str:
    from billiard.exceptions import SoftTimeLimitExceeded

    try:
        begun.set()
        time.sleep(PATIENCE)
    except SoftTimeLimitExceeded:
        return "cleaned up"
    return "never limited"


def ignore_terminate(begun: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    begun.set()
    forever()
