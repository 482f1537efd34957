"""What the tests of processes have them do, and how they start them and ask them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from billiard import Pipe
from billiard.connection import Connection


def nothing() -> None:
    pass


def until_told(conn: Connection) -> None:
    """Stay until a message comes."""
    conn.recv()


def leave(*args: Any) -> None:
    sys.exit(*args)


@contextlib.contextmanager
def staying(ctx: Any, **kwargs: Any) -> Iterator[Any]:
    """A process that runs until the block is left, or until it is killed there."""
    ours, its = Pipe()
    child = ctx.Process(target=until_told, args=(its,), **kwargs)
    child.start()
    its.close()
    try:
        yield child
    finally:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            ours.send("go")
        ours.close()
        child.join(60)


def ask(ctx: Any, target: Callable[..., object], *args: Any, **kwargs: Any) -> Any:
    """What a process sends that is given a connection and `args`."""
    ours, its = Pipe()
    child = ctx.Process(target=target, args=(its, *args), **kwargs)
    child.start()
    its.close()
    with ours:
        answer = ours.recv()
        child.join(60)
    assert child.exitcode == 0
    return answer


def ended(ctx: Any, target: Callable[..., object], *args: Any, **kwargs: Any) -> int | None:
    """The exit code of a process."""
    child = ctx.Process(target=target, args=args, **kwargs)
    child.start()
    child.join(60)
    code: int | None = child.exitcode
    return code
