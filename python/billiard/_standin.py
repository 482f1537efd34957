"""`multiprocessing` in a child that has not imported it.

Code that asks multiprocessing what process this is has to get billiard's answer in billiard's
children; `logging` does so for `%(processName)s`, but only if multiprocessing is in `sys.modules`.
To import it for that would cost every child more than its start. So a stand-in takes its place: it
answers that one question, and at any other becomes the real one's shadow:

```
 sys.modules["multiprocessing"]:  stand-in ──── anything but current_process ────► the real package
 who holds the stand-in:          its attributes are the real package's from then on
```
"""

from __future__ import annotations

import sys
from _thread import allocate_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .process import BaseProcess

_ModuleType = type(sys)
_NAME = "multiprocessing"


class _StandIn(_ModuleType):  # type: ignore[valid-type, misc]
    """Process-local; a forked child inherits it with its name in `sys.modules`."""

    def __getattribute__(self, name: str) -> Any:
        if name == "__class__":
            return _ModuleType  # for isinstance(), which scanners of sys.modules call
        if name == "current_process" and sys.modules.get(_NAME) is self:
            return _current_process
        return getattr(_real(self), name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(_real(self), name, value)

    def __delattr__(self, name: str) -> None:
        delattr(_real(self), name)

    def __dir__(self) -> list[str]:
        return dir(_real(self))


#: held for the moment in which the stand-in makes way
_lock = allocate_lock()
_current_process: Callable[[], BaseProcess]


def _real(stand_in: _StandIn) -> Any:
    with _lock:
        if sys.modules.get(_NAME) is stand_in:
            del sys.modules[_NAME]
    import multiprocessing.process

    multiprocessing.process._current_process = _current_process()  # type: ignore[attr-defined]
    return multiprocessing


_stand_in: _StandIn | None = None


def prepared(current_process: Callable[[], BaseProcess]) -> Any:
    """The stand-in, to be put in place in a child of this process or, by then, in this one.

    Made once, before the first fork: what a child need not make need not be copied.
    """
    global _current_process, _stand_in
    if _stand_in is None:
        _current_process = current_process
        _stand_in = _StandIn(_NAME)
    return _stand_in


def renew_lock() -> None:
    """In a forked child that has inherited the stand-in: another thread may have held the lock."""
    global _lock
    _lock = allocate_lock()
