"""Where the compiled parts are (origin: billiard)."""

from __future__ import annotations

try:
    import _billiard
except ImportError:  # hidden, to keep Celery from reading through it
    from . import _core as _billiard  # type: ignore[no-redef]

__all__ = ["_billiard", "ensure_SemLock", "ensure_multiprocessing", "supports_exec", "win32"]

#: whether children can be started by executing a new interpreter
supports_exec = True
#: the compiled parts for Windows
win32 = None


def ensure_multiprocessing() -> None:
    """Raise `NotImplementedError` on platforms without support; this one has it."""


def ensure_SemLock() -> None:
    """Raise `ImportError` on platforms without semaphores; this one has them."""
