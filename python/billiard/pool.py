"""Pools of workers: ``Pool``, ``ThreadPool``, their handlers and their results.

The public names of :mod:`billiard._pool`, which says how it works. Origin: multiprocessing.pool
and billiard.pool.
"""

from __future__ import annotations

import os as os
import threading
import time as time
from os import kill as _kill  # noqa: F401  (what the handlers send signals with)

from . import cpu_count, exceptions, get_context
from ._pool import constants
from ._pool.book import Pool
from ._pool.chunks import mapstar, starmapstar
from ._pool.constants import (
    ACK,
    CLOSE,
    DEATH,
    EX_FAILURE,
    EX_OK,
    EX_RECYCLE,
    GUARANTEE_MESSAGE_CONSUMPTION_RETRY_INTERVAL,
    GUARANTEE_MESSAGE_CONSUMPTION_RETRY_LIMIT,
    LOST_WORKER_TIMEOUT,
    NACK,
    READY,
    RUN,
    TASK,
    TERMINATE,
    job_counter,
)
from ._pool.handlers import (
    PoolThread,
    ResultHandler,
    Supervisor,
    TaskHandler,
    TimeoutHandler,
    WorkersJoined,
    stop_if_not_current,
)
from ._pool.log import debug, error, warning
from ._pool.results import ApplyResult, IMapIterator, IMapUnorderedIterator, MapResult
from ._pool.semaphore import LaxBoundedSemaphore
from ._pool.threadpool import ThreadPool
from ._pool.wire import MaybeEncodingError
from ._pool.worker import Worker, soft_timeout_sighandler
from .common import (
    TERM_NUMBER,
    clear_terminate_handler_fired,
    human_status,
    pickle_loads,
    reset_signals,
    restart_state,
    terminate_handler_fired,
)
from .compat import get_errno, mem_rss, send_offset
from .dummy import DummyProcess
from .einfo import ExceptionInfo, RemoteTraceback
from .exceptions import (
    CoroStop,
    RestartFreqExceeded,
    SoftTimeLimitExceeded,
    Terminated,
    TimeLimitExceeded,
    WorkerLostError,
)
from .util import Finalize

TYPE_CHECKING = False
if TYPE_CHECKING:
    from signal import Signals
    from typing import Any

    from .exceptions import TimeoutError as TimeoutError

    SIGKILL: Signals
    SIG_SOFT_TIMEOUT: Signals | None
    TERM_SIGNAL: Signals

_NUMBERS = {
    "SIGKILL": constants.SIGKILL,
    "SIG_SOFT_TIMEOUT": constants.SIG_SOFT_TIMEOUT,
    "TERM_SIGNAL": TERM_NUMBER,
}
_late_exception = exceptions.late_names(__name__)


def __getattr__(name: str) -> Any:
    """Names whose modules are dear to import: `signal`'s enums and multiprocessing's errors."""
    if name not in _NUMBERS:
        return _late_exception(name)
    from signal import Signals

    number = _NUMBERS[name]
    return globals().setdefault(name, None if number is None else Signals(number))


__all__ = [
    "ACK",
    "CLOSE",
    "DEATH",
    "EX_FAILURE",
    "EX_OK",
    "EX_RECYCLE",
    "GUARANTEE_MESSAGE_CONSUMPTION_RETRY_INTERVAL",
    "GUARANTEE_MESSAGE_CONSUMPTION_RETRY_LIMIT",
    "LOST_WORKER_TIMEOUT",
    "NACK",
    "READY",
    "RUN",
    "SIGKILL",
    "SIG_SOFT_TIMEOUT",
    "TASK",
    "TERMINATE",
    "TERM_SIGNAL",
    "TIMEOUT_MAX",
    "ApplyResult",
    "CoroStop",
    "DummyProcess",
    "ExceptionInfo",
    "Finalize",
    "IMapIterator",
    "IMapUnorderedIterator",
    "LaxBoundedSemaphore",
    "Lock",
    "MapResult",
    "MaybeEncodingError",
    "Pool",
    "PoolThread",
    "RemoteTraceback",
    "RestartFreqExceeded",
    "ResultHandler",
    "SoftTimeLimitExceeded",
    "Supervisor",
    "TaskHandler",
    "Terminated",
    "ThreadPool",
    "TimeLimitExceeded",
    "TimeoutError",
    "TimeoutHandler",
    "Worker",
    "WorkerLostError",
    "WorkersJoined",
    "clear_terminate_handler_fired",
    "cpu_count",
    "debug",
    "error",
    "get_context",
    "get_errno",
    "human_status",
    "job_counter",
    "mapstar",
    "mem_rss",
    "pickle_loads",
    "reset_signals",
    "restart_state",
    "send_offset",
    "soft_timeout_sighandler",
    "starmapstar",
    "stop_if_not_current",
    "terminate_handler_fired",
    "warning",
]

#: What jobs lock themselves with. Celery puts a dummy here when one thread does everything.
Lock = threading.Lock
TIMEOUT_MAX = threading.TIMEOUT_MAX
