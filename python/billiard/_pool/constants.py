"""Numbers that the pool, its workers and Celery agree on."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the enums of `signal` are dear
import itertools
import os

# States of a pool and of its handler threads.
RUN = 0
CLOSE = 1
TERMINATE = 2

# First item of a message between a worker and the pool.
ACK = 0  # the worker has accepted a task
READY = 1  # a task has a result
TASK = 2  # a task for the worker
NACK = 3  # (to a worker that waits for leave) do not run it
DEATH = 4  # the worker is about to exit

# More of them, of workers that announce themselves.
UNFIT = 6  # the worker is not ready for tasks: its initializer has failed

# And of the native drive's Rust part.
OVER = -1  # a worker has ended, all that it had sent has been read
SOFT = -2  # a soft limit has passed
HARD = -3  # a hard limit has passed
DRAINED = -4  # all tasks of a closed pool have ended
IDLE = -5  # there are no tasks at the moment
STRANGE = -6  # a message that could not be read
CHANGE = -7  # there is something else to look after
LOST = -8  # a task has been lost with its worker

# Exit statuses of workers.
EX_OK: int = getattr(os, "EX_OK", 0)
EX_FAILURE = 1
EX_RECYCLE = 0x9B  # has done its share of tasks, or used its share of memory

#: the signal of a soft time limit
SIG_SOFT_TIMEOUT: int | None = getattr(_signal, "SIGUSR1", None)
SIGTERM: int = _signal.SIGTERM
SIGKILL: int = _signal.SIGKILL
SIGCONT: int = _signal.SIGCONT

#: seconds that a job whose worker has died may still get a result (passive drive)
LOST_WORKER_TIMEOUT = 10.0
#: how often, and how many seconds apart at most, an exiting worker looks whether all that it sent
#: has been read
GUARANTEE_MESSAGE_CONSUMPTION_RETRY_LIMIT = 300
GUARANTEE_MESSAGE_CONSUMPTION_RETRY_INTERVAL = 0.1

#: numbers of jobs, for all pools of this process
job_counter = itertools.count()

#: How many tasks a caller hands over at once whose items are at hand, or are to be read at once.
AT_HAND_TASKS = 1 << 16
