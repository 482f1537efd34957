"""The exceptions of the package.

Four of them *are* multiprocessing's classes, as in billiard 4.3.2, so that `except` clauses written
for one package catch what the other raises. multiprocessing is dear to import, so these four are
looked up when somebody first asks for them: `exceptions.TimeoutError`, not
`from .exceptions import TimeoutError`, in modules that are imported with the package.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing import AuthenticationError as AuthenticationError
    from multiprocessing import BufferTooShort as BufferTooShort
    from multiprocessing import ProcessError as ProcessError
    from multiprocessing import TimeoutError as TimeoutError

    class OwnerDiedError(ProcessError): ...


#: the names that are resolved late
_SHARED = frozenset({"AuthenticationError", "BufferTooShort", "ProcessError", "TimeoutError"})


def late_names(module: str) -> Callable[[str], type[Exception]]:
    """A `__getattr__` for the module of that name, which gives it the four."""

    def __getattr__(name: str) -> type[Exception]:
        if name in _SHARED:
            import multiprocessing

            if multiprocessing.__name__ != "multiprocessing":
                return _stand_in_for(name)
            found: type[Exception] = getattr(multiprocessing, name)
            return found
        if name == "OwnerDiedError" and module == __name__:
            return _owner_died_error()
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return __getattr__


#: the four of a program that has put billiard in multiprocessing's place
_stand_ins: dict[str, type[Exception]] = {}


def _stand_in_for(name: str) -> type[Exception]:
    if name not in _stand_ins:
        base = Exception if name == "ProcessError" else _stand_in_for("ProcessError")
        _stand_ins.setdefault(name, type(name, (base,), {"__module__": __name__}))
    return _stand_ins[name]


def _owner_died_error() -> type[Exception]:
    """`OwnerDiedError`, made when it is first asked for: it is a ProcessError."""
    doc = "The process that held a lock has died with it; its finder owns it now. Origin: ours."
    body = {"__doc__": doc, "__module__": __name__}
    made = type("OwnerDiedError", (_late("ProcessError"),), body)
    kept: type[Exception] = globals().setdefault("OwnerDiedError", made)
    return kept


_late = late_names(__name__)
if not TYPE_CHECKING:
    __getattr__ = _late


class Late:
    """A class attribute that stands for the exception of its own name, looked up late."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type | None = None) -> type[Exception]:
        return _late(self._name)


class TimeLimitExceeded(Exception):
    """The hard time limit has passed, and the job's process was killed. Origin: billiard."""

    def __str__(self) -> str:
        return f"TimeLimitExceeded{self.args}"


class SoftTimeLimitExceeded(Exception):
    """The soft time limit has passed; raised inside the task, to tidy up. Origin: billiard."""

    def __str__(self) -> str:
        return f"SoftTimeLimitExceeded{self.args}"


class WorkerLostError(Exception):
    """The process that ran a job has ended without an answer. Origin: billiard."""


class Terminated(Exception):
    """The process that ran a job was ended because somebody asked for it. Origin: billiard."""


class RestartFreqExceeded(Exception):
    """Processes had to be replaced too often in too short a time. Origin: billiard."""


class CoroStop(Exception):
    """A coroutine has ended; unlike StopIteration, not to be resumed. Origin: billiard."""
