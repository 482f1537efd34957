"""The manager of the tests of managers, the types that it shares, and a child that uses them."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

from billiard.managers import SyncManager


class Odd(Exception):
    """Cannot be rebuilt from its `args`."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(f"{code}: {why}")


class Counter:
    def __init__(self, start: int = 0, c: int = 0, typeid: str = "") -> None:
        self.n = start + c
        self._secret = typeid

    def add(self, k: int = 1) -> int:
        self.n += k
        return self.n

    def numbers(self, n: int) -> Iterator[int]:
        yield from range(n)

    def fork(self) -> Counter:
        return Counter(self.n)

    def fail(self) -> None:
        raise LookupError("no such thing", self.n)

    def cancel(self) -> None:
        raise asyncio.CancelledError("not now")

    def fail_oddly(self) -> None:
        raise Odd(7, "because")

    def unpicklable(self) -> object:
        return threading.Lock()

    def use(self, proxy: Any) -> Any:
        """Call back into the server that this runs in."""
        return proxy.copy()

    def die(self) -> None:
        os._exit(3)

    def _hidden(self) -> str:
        return "hidden"


def make_from(proxy: Any) -> list[Any]:
    """A callable that uses a proxy of the server that calls it."""
    return list(proxy.keys())


class Manager(SyncManager):
    pass


Manager.register("Counter", Counter, method_to_typeid={"numbers": "Iterator", "fork": "Twin"})
Manager.register("Twin", create_method=False)
Manager.register("Shy", Counter, exposed=("add", "_hidden"))
Manager.register("make_from", make_from)
Manager.register("collect", gc.collect)
Manager.register("leave", sys.exit)


def in_child(table: Any, numbers: Any, done: Any, counter: Any) -> None:
    table["child"] = sorted(table)
    numbers.append(table)  # a proxy inside another, from here
    assert list(counter.numbers(3)) == [0, 1, 2]  # a result that stays in the server
    assert counter.fork().add(1) == counter.add(1)
    done.set()
