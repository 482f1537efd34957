"""Spare interpreters: already started, waiting for a start to take over.

```
 set_spares(n) ──► n interpreters that have imported what every spawn child needs, and wait
 start()       ──► is there one that was started under the same conditions?
                     yes: it gets the message and the descriptors, and another is started
                     no:  it is thrown away
 the parent ends: the spares see the end of their sockets, and end as well
```

A spare is what a child that is started now would be only as long as nothing has changed that a
child inherits: executable, options, environment, working directory, standard streams, user. What
else is inherited (umask, resource limits, priority, CPU affinity) it has from when it was started.

Process-local: a forked child closes its copies of the sockets and has no spares. `_lock` guards the
list and the customers; the thread that holds it may come back to it in a signal handler, so nothing
that was counted before a spare was started or ended is relied on after.
"""

from __future__ import annotations

import contextlib
import os
import threading

from . import _core, spawn, util

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Conditions = tuple[Any, ...]

_SIGKILL = 9


class _Spare:
    """A spare; its child is waited for when somebody wants to know it."""

    def __init__(self, starting: _core.Starting, socket: int, conditions: Conditions) -> None:
        self._starting: _core.Starting | None = starting
        self.socket = socket
        self.conditions = conditions

    @property
    def child(self) -> _core.Child:
        """The process; `OSError` if it could not be started."""
        if self._starting is not None:
            self._child = self._starting.child()
            self._starting = None
        return self._child

    def discard(self) -> None:
        """End it; it has done nothing yet that could be lost."""
        os.close(self.socket)
        try:
            child = self.child
        except (OSError, ValueError):
            return
        child.send_signal(_SIGKILL)
        child.wait()
        child.close()


_lock = threading.RLock()
_spares: list[_Spare] = []
#: how many each customer wants; the most of them are kept
_wanted: dict[object, int] = {}


def want(customer: object, count: int) -> None:
    """Keep `count` spares for `customer`, which are shared with all other customers.

    Raises `OSError` if they cannot be started; nothing has changed then.
    """
    with _lock:
        before = dict(_wanted)
        if count:
            _wanted[customer] = count
        else:
            _wanted.pop(customer, None)
        try:
            _refill()
            for spare in list(_spares):
                spare.child  # noqa: B018  (if there cannot be one, it is said here)
        except BaseException:
            _wanted.clear()
            _wanted.update(before)
            _drop_unborn()
            raise


def keep_for(owner: object, count: int) -> Callable[[], object]:
    """Keep `count` spares while `owner` lives, or until the function that is returned is called.

    Where they cannot be started there are none: their owner can do without.
    """
    customer = object()
    give_up = util.Finalize(owner, want, (customer, 0), exitpriority=16)
    with contextlib.suppress(OSError):
        want(customer, count)
    return give_up


def take(message: int, fds: list[int]) -> _core.Child | None:
    """Have a spare read `message` and get `fds`; None if there is none that could."""
    if not _wanted:
        return None
    if len(fds) >= _core.MAX_REQUEST_FDS:
        return None
    conditions = _conditions()
    taken = None
    with _lock:
        while _spares and taken is None:
            spare = _spares.pop(0)
            if spare.conditions == conditions:
                try:
                    spare.child  # noqa: B018  (is there one?)
                    _core.hand_over(spare.socket, message, fds)
                    taken = spare
                    continue
                except OSError:
                    pass  # somebody has killed it
            spare.discard()
        with contextlib.suppress(OSError):  # it is the next start's turn to try again
            _refill(conditions)
    if taken is None:
        return None
    os.close(taken.socket)
    return taken.child


def _drop_unborn() -> None:
    """Forget those that could not be started."""
    for spare in list(_spares):
        try:
            spare.child  # noqa: B018
        except (OSError, ValueError):
            _spares.remove(spare)
            spare.discard()


def _refill(conditions: Conditions | None = None) -> None:
    while len(_spares) < max(_wanted.values(), default=0):
        conditions = conditions or _conditions()
        _spares.append(_start(conditions))
    while len(_spares) > max(_wanted.values(), default=0):
        _spares.pop().discard()


def _conditions() -> Conditions:
    """What has to be the same for a spare to be what a child started now would be."""
    streams: list[tuple[int, int] | None] = []
    for fd in (0, 1, 2):
        try:
            streams.append(_core.file_identity(fd))
        except OSError:
            streams.append(None)
    return (
        spawn.get_executable(),
        util._args_from_interpreter_flags(),
        dict(getattr(os.environ, "_data", os.environ)),  # as bytes, without decoding each
        os.getcwd(),
        streams,
        os.getresuid(),
        os.getresgid(),
    )


def _start(conditions: Conditions) -> _Spare:
    import _signal  # type: ignore[import-not-found]

    executable, options = conditions[:2]
    ours, its = _core.request_sockets()
    try:
        # ^C is not for a spare; it is deaf to it before it can say so itself.
        before = _signal.pthread_sigmask(_signal.SIG_BLOCK, (_signal.SIGINT,))
        try:
            blocked = _signal.SIGINT in before
            code = f"from billiard.spawn import spare_main; spare_main({its}, {blocked})"
            command = [executable, *options, "-c", code, "--billiard-fork"]
            # Not waited for: what has just been taken over is to get the processor first.
            starting = _core.Starting(
                os.fsencode(executable), [os.fsencode(word) for word in command], [its]
            )
        finally:
            _signal.pthread_sigmask(_signal.SIG_SETMASK, before)
    except BaseException:
        os.close(ours)
        raise
    return _Spare(starting, ours, conditions)


def _discard_all() -> None:
    with _lock:
        _wanted.clear()
        _refill()


def _forget() -> None:
    """In a forked child: they are the parent's."""
    global _lock
    _lock = threading.RLock()
    for spare in _spares:
        os.close(spare.socket)
    _spares.clear()
    _wanted.clear()


os.register_at_fork(after_in_child=_forget)
# After the children that are still to be joined, which may start others.
util.Finalize(None, _discard_all, exitpriority=-50)
