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
from ._pool.book import Pool
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
    SIG_SOFT_TIMEOUT,
    SIGKILL,
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
from ._pool.submit import mapstar, starmapstar
from ._pool.threadpool import ThreadPool
from ._pool.wire import MaybeEncodingError
from ._pool.worker import Worker, soft_timeout_sighandler
from .common import (
    TERM_SIGNAL,
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
    from .exceptions import TimeoutError as TimeoutError
else:
    __getattr__ = exceptions.late_names(__name__)  # it is multiprocessing's, which is dear

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
