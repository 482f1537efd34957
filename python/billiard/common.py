"""Signals, exit statuses and restart limits: what pools share with Celery's own processes."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the enums of `signal` are dear
import os
import sys
from _pickle import load as pickle_load
from io import BytesIO
from time import monotonic

from .exceptions import RestartFreqExceeded

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any

    from _typeshed import ReadableBuffer

    SignalHandler = Callable[[int, FrameType | None], Any] | int | None

#: signal number -> name. Numbers with two names get the one that people know.
SIGMAP: dict[int, str] = {
    getattr(_signal, name): name for name in dir(_signal) if name.startswith("SIG")
}
SIGMAP.update({getattr(_signal, name): name for name in ("SIGHUP", "SIGABRT")})

#: The environment may name another signal that ends workers warmly (SIGTERM is then ignored):
#: container systems send SIGTERM to every process of a group, and one that is in the middle of
#: its tasks should not take it as a wish to die.
REMAP_SIGTERM = os.environ.get("REMAP_SIGTERM")
TERM_SIGNAME: str = REMAP_SIGTERM or "SIGTERM"
TERM_NUMBER: int = getattr(_signal, TERM_SIGNAME)

if TYPE_CHECKING:
    from signal import Signals

    TERM_SIGNAL: Signals


def __getattr__(name: str) -> Any:
    if name == "TERM_SIGNAL":
        from signal import Signals

        return globals().setdefault(name, Signals(TERM_NUMBER))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), "TERM_SIGNAL"})


TERMSIGS_IGNORE = {"SIGTERM"} if REMAP_SIGTERM else set()
TERMSIGS_FORCE = {"SIGQUIT"} if REMAP_SIGTERM else set()

#: exit status of a process that got a second terminate signal while it was ending
EX_SOFTWARE = 70

#: handled in every worker
TERMSIGS_DEFAULT = {"SIGHUP", "SIGQUIT", TERM_SIGNAME, "SIGUSR1"}

#: handled in workers that must run their ``finally`` blocks whatever ends them
TERMSIGS_FULL = TERMSIGS_DEFAULT | {
    "SIGTRAP",
    "SIGABRT",
    "SIGEMT",
    "SIGSYS",
    "SIGPIPE",
    "SIGALRM",
    "SIGXCPU",
    "SIGXFSZ",
    "SIGVTALRM",
    "SIGPROF",
    "SIGUSR2",
}

#: One item, true once this process has begun to exit because of a signal. A list, so that every
#: importer sees the same flag.
_should_have_exited = [False]


def terminate_handler_fired() -> bool:
    """Tell whether this process is exiting because :func:`reset_signals`' handler ran in it.

    A signal that was sent but not handled yet does not count. Origin: billiard.
    """
    return _should_have_exited[0]


def clear_terminate_handler_fired() -> None:
    """Forget that the handler ran: a forked child inherits the flag but is not exiting itself.

    Origin: billiard.
    """
    _should_have_exited[0] = False


def human_status(status: int | None) -> str:
    """Spell an exit status: ``exitcode 1``, or ``signal 9 (SIGKILL)`` for a negative one.

    Origin: billiard.
    """
    if status is None or status >= 0:
        return f"exitcode {status}"
    name = SIGMAP.get(-status)
    return f"signal {-status} ({name})" if name else f"signal {-status}"


def pickle_loads(s: ReadableBuffer, load: Callable[[BytesIO], Any] = pickle_load) -> Any:
    """Unpickle from any buffer. Origin: billiard."""
    return load(BytesIO(s))


def maybe_setsignal(signum: int, handler: SignalHandler) -> None:
    """Set a signal handler where that is possible; elsewhere do nothing.

    Not possible: a signal that cannot be caught, a thread that is not the main one.
    Origin: billiard.
    """
    import signal

    try:  # noqa: SIM105  (contextlib is dear to import)
        signal.signal(signum, handler)
    except (OSError, AttributeError, ValueError, RuntimeError):
        pass


def _set_signal(signum: int, handler: SignalHandler) -> None:
    """:func:`maybe_setsignal` without the enums of `signal`, which take long to import."""
    try:  # noqa: SIM105  (contextlib is dear to import)
        _signal.signal(signum, handler)
    except (OSError, ValueError):
        pass


def _shutdown_cleanup(signum: int, frame: FrameType | None) -> None:
    """Exit by ``SystemExit``, so that ``finally`` blocks run; at once when asked again."""
    if _should_have_exited[0]:
        os._exit(EX_SOFTWARE)
    _set_signal(signum, _signal.SIG_DFL)
    _should_have_exited[0] = True
    # The low byte, which is all that a parent sees, is the number of the signal.
    sys.exit(signum - 256)


def signum(sig: str) -> int | None:
    """The number of a signal's name, None where the system has no such signal."""
    return getattr(_signal, sig, None)


def _should_override_term_signal(sig: str, current: SignalHandler) -> bool:
    # None: a handler that was not installed from Python. Ignored stays ignored (nohup).
    return sig in TERMSIGS_FORCE or current not in (None, _signal.SIG_IGN)


def reset_signals(handler: SignalHandler = _shutdown_cleanup, full: bool = False) -> None:
    """Let the terminating signals end this process in an orderly way.

    :param handler: what to install, by default an exit by ``SystemExit``.
    :param full: all terminating signals instead of the four usual ones.

    Ignored signals stay ignored. Origin: billiard.
    """
    import signal

    _reset_signals(handler, full, signal.getsignal, maybe_setsignal)


def take_over_signals(full: bool) -> None:
    """:func:`reset_signals` for a new worker, without the enums of `signal`."""
    _reset_signals(_shutdown_cleanup, full, _signal.getsignal, _set_signal)


def _reset_signals(
    handler: SignalHandler,
    full: bool,
    handler_of: Callable[[int], Any],
    set_handler: Callable[[int, SignalHandler], None],
) -> None:
    for name in TERMSIGS_FULL if full else TERMSIGS_DEFAULT:
        number = signum(name)
        if number and _should_override_term_signal(name, handler_of(number)):
            set_handler(number, handler)
    for name in TERMSIGS_IGNORE:
        number = signum(name)
        if number:
            set_handler(number, _signal.SIG_IGN)


class restart_state:
    """Counts restarts, and refuses when there are too many of them in a period.

    :param maxR: restarts that a period may have; None or 0 for any number.
    :param maxT: length of the period in seconds.

    Process-local, no lock: one thread steps it. Whoever sees that a restart was a success sets
    ``R`` to 0. Origin: billiard.
    """

    RestartFreqExceeded = RestartFreqExceeded

    def __init__(self, maxR: int | None, maxT: float) -> None:
        self.maxR, self.maxT = maxR, maxT
        self.R: int = 0
        self.T: float | None = None

    def step(self, now: float | None = None) -> None:
        """Count a restart.

        :param now: the time in seconds, monotonic by default.
        :raises RestartFreqExceeded: too many; the count starts again.
        """
        if now is None:
            now = monotonic()
        restarts = self.R
        if self.T and now - self.T >= self.maxT:
            self.T, self.R = now, 0
        elif self.maxR and restarts >= self.maxR:
            self.R = 0
            raise self.RestartFreqExceeded(f"{restarts!r} in {self.maxT!r}s")
        if self.T is None:
            self.T = now
        self.R += 1
