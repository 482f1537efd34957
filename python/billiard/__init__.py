"""billiard: multiprocessing with a pool for services, on a Rust core.

The names here are those of the default context: `billiard.Lock()` is
`billiard.context._default_context.Lock()`.
"""

from __future__ import annotations

import sys

from . import context, exceptions

__version__ = "4.3.2+rs.1"
__author__ = "R Oudkerk / Python Software Foundation"
__author_email__ = "python-dev@python.org"
__maintainer__ = "Asif Saif Uddin"
__contact__ = "auvipy@gmail.com"
__homepage__ = "https://github.com/celery/billiard"
__docformat__ = "restructuredtext"

#: major, minor, patch, and what follows
VERSION = (4, 3, 2, "+rs.1")

_default = context._default_context

Array = _default.Array
Barrier = _default.Barrier
BoundedSemaphore = _default.BoundedSemaphore
Condition = _default.Condition
Event = _default.Event
JoinableQueue = _default.JoinableQueue
Lock = _default.Lock
Manager = _default.Manager
Pipe = _default.Pipe
Pool = _default.Pool
Process = context.Process
Queue = _default.Queue
RLock = _default.RLock
RawArray = _default.RawArray
RawValue = _default.RawValue
Semaphore = _default.Semaphore
SimpleQueue = _default.SimpleQueue
SoftTimeLimitExceeded = _default.SoftTimeLimitExceeded
TimeLimitExceeded = _default.TimeLimitExceeded
Value = _default.Value
WorkerLostError = _default.WorkerLostError
active_children = _default.active_children
allow_connection_pickling = _default.allow_connection_pickling
cpu_count = _default.cpu_count
current_process = _default.current_process
forking_enable = _default.forking_enable
forking_is_enabled = _default.forking_is_enabled
freeze_support = _default.freeze_support
get_all_start_methods = _default.get_all_start_methods
get_context = _default.get_context
get_logger = _default.get_logger
get_start_method = _default.get_start_method
log_to_stderr = _default.log_to_stderr
parent_process = _default.parent_process
set_executable = _default.set_executable
set_forkserver_preload = _default.set_forkserver_preload
set_start_method = _default.set_start_method

del _default

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .exceptions import AuthenticationError as AuthenticationError
    from .exceptions import BufferTooShort as BufferTooShort
    from .exceptions import ProcessError as ProcessError
    from .exceptions import TimeoutError as TimeoutError

__all__ = [
    "Array",
    "AuthenticationError",
    "Barrier",
    "BoundedSemaphore",
    "BufferTooShort",
    "Condition",
    "Event",
    "JoinableQueue",
    "Lock",
    "Manager",
    "Pipe",
    "Pool",
    "Process",
    "ProcessError",
    "Queue",
    "RLock",
    "RawArray",
    "RawValue",
    "Semaphore",
    "SimpleQueue",
    "SoftTimeLimitExceeded",
    "TimeLimitExceeded",
    "TimeoutError",
    "Value",
    "WorkerLostError",
    "active_children",
    "allow_connection_pickling",
    "cpu_count",
    "current_process",
    "forking_enable",
    "forking_is_enabled",
    "freeze_support",
    "get_all_start_methods",
    "get_context",
    "get_logger",
    "get_start_method",
    "log_to_stderr",
    "parent_process",
    "set_executable",
    "set_forkserver_preload",
    "set_start_method",
]

#: log levels of the package's own
SUBDEBUG = 5
SUBWARNING = 25

# Children that re-import the main module put it here under the same name.
if "__main__" in sys.modules:
    sys.modules["__mp_main__"] = sys.modules["__main__"]

if not TYPE_CHECKING:
    __getattr__ = exceptions.late_names(__name__)


def ensure_multiprocessing() -> None:
    """Raise `NotImplementedError` where there can be no processes (origin: billiard)."""
    from ._ext import ensure_multiprocessing

    ensure_multiprocessing()


# Only for type checkers; the names of this module are its users'.
del TYPE_CHECKING
