"""Where subclasses of a pool take part: Celery's ``AsynPool`` overrides these, by these names.

Most do nothing here. The drives call them (see ``drive.py``), some only where somebody else's event
loop drives the pool. How a pool makes its processes and queues can be overridden as well: that is
in ``book.py``. Origin: billiard.
"""

from __future__ import annotations

from time import monotonic

from .drive import terminate_passively
from .handlers import stop_if_not_current

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Hooks:
    """See the top of this file."""

    _inqueue: Any
    _task_handler: Any
    _pool: list[Any]

    # ---- jobs and workers ----

    def on_job_ready(self, job: int, i: int | None, obj: Any, inqW_fd: int | None) -> None:
        """A result has been read."""

    def _process_register_queues(self, worker: Any, queues: tuple[Any, Any, Any]) -> None:
        """A worker has been given queues."""

    def process_flush_queues(self, worker: Any) -> None:
        """A worker has exited: handle what it still sent."""

    def _process_cleanup_queues(self, worker: Any) -> None:
        """A worker has exited: its queues are free."""

    def on_partial_read(self, job: Any, worker: Any) -> None:
        """A worker has exited while a job was written to it."""

    def on_job_process_down(self, job: Any, pid_gone: int) -> None:
        """The worker of a job has exited."""

    def on_job_process_lost(self, job: Any, pid: int, exitcode: int | None) -> None:
        """A worker has exited and a job it had begun has no result (passive drive)."""
        job._worker_lost = (monotonic(), exitcode)

    def send_ack(self, response: int, job: int, i: int, fd: int) -> None:
        """Answer a worker that asks for leave (``synack``)."""

    def on_grow(self, n: int) -> None:
        """The pool is to have ``n`` workers more."""

    def on_shrink(self, n: int) -> None:
        """The pool has ``n`` workers less."""

    # ---- the end ----

    @staticmethod
    def _stop_task_handler(task_handler: Any) -> None:
        """Tell workers that there are no more tasks (passive drive)."""
        stop_if_not_current(task_handler)

    def _help_stuff_finish_args(self) -> tuple[Any, ...]:
        return self._inqueue, self._task_handler, self._pool

    @staticmethod
    def _help_stuff_finish(inqueue: Any, task_handler: Any, _pool: Any) -> None:
        """Let go who is blocked on a queue of tasks (passive drive)."""

    @classmethod
    def _set_result_sentinel(cls, outqueue: Any, pool: Any) -> None:
        outqueue.put(None)

    @classmethod
    def _terminate_pool(
        cls,
        taskqueue: Any,
        inqueue: Any,
        outqueue: Any,
        pool: Any,
        worker_handler: Any,
        task_handler: Any,
        result_handler: Any,
        cache: Any,
        timeout_handler: Any,
        help_stuff_finish_args: tuple[Any, ...],
    ) -> None:
        """Terminate a pool without threads."""
        terminate_passively(
            cls,
            taskqueue,
            inqueue,
            outqueue,
            pool,
            worker_handler,
            task_handler,
            result_handler,
            timeout_handler,
            help_stuff_finish_args,
        )
