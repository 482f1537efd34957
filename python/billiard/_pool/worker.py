"""What a worker process does.

```
 start ─► after_fork ─► on_loop_start ─► workloop ─► _do_exit: on_exit, flush, DEATH, os._exit
          initializer                     │    ▲
                 wait_for_job, ACK, (leave?), run, READY
```

The loop ends with a goodbye (None), after ``maxtasks`` tasks, above the memory limit, when a task
raises SystemExit or KeyboardInterrupt (its caller gets that as the outcome), or by a terminating
signal, which surfaces as SystemExit wherever the worker is: see :mod:`billiard.common`.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the enums of `signal` are dear
import errno
import os
import sys
import time
from functools import partial
from time import monotonic

from .. import util
from .._core import resident_kib, soft_limit_passed
from ..common import (
    TERM_NUMBER,
    _should_have_exited,
    clear_terminate_handler_fired,
    pickle_loads,
    take_over_signals,
    terminate_handler_fired,
)
from ..compat import get_errno, mem_rss, send_offset
from ..exceptions import SoftTimeLimitExceeded
from ..reduction import ForkingPickler
from . import wire
from .constants import (
    ACK,
    DEATH,
    EX_FAILURE,
    EX_OK,
    EX_RECYCLE,
    GUARANTEE_MESSAGE_CONSUMPTION_RETRY_INTERVAL,
    GUARANTEE_MESSAGE_CONSUMPTION_RETRY_LIMIT,
    NACK,
    READY,
    SIG_SOFT_TIMEOUT,
    TASK,
    UNFIT,
)
from .lane import Lane
from .log import debug, error, warning

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any, NoReturn

    from .results import Outcome

#: seconds that a dying worker gives others to take what it has for them
FLUSH_TIMEOUT = 1.0

#: One item: whether a task of this process runs. A soft limit that comes late must not hit
#: what follows the task.
_busy = [False]


def soft_timeout_sighandler(signum: int, frame: FrameType | None) -> None:
    """The handler of soft time limits in a worker. Origin: billiard."""
    if _busy[0] or soft_limit_passed():
        raise SoftTimeLimitExceeded()


soft_timeout_sighandler.__module__ = "billiard.pool"


def _get_send_offset(connection: Any) -> Callable[[Any, int], int]:
    native: Callable[[Any, int], int] | None = getattr(connection, "send_offset", None)
    return native or partial(send_offset, connection.fileno())


class Worker:
    """The target of a worker process. Made in the parent, called in the child.

    :param inq: where tasks come from. :param outq: where results go.
    :param synq: where leave to run a task comes from, if it has to be asked for.
    :param initializer: called once with ``initargs`` in the child.
    :param maxtasks: tasks after which to exit. :param sentinel: an event that means exit.
    :param on_exit: called in the child with pid and exit status.
    :param sigprotection: handle all terminating signals, not the usual ones only.
    :param wrap_exception: of no effect. :param max_memory_per_child: KiB above which to exit.
    :param on_ready_counter: a shared value in which the parent counts the results it has read.

    Origin: billiard; Celery subclasses it.
    """

    __module__ = "billiard.pool"

    wait_for_job: Callable[[], Any]
    wait_for_syn: Callable[[], Any] | None

    def __init__(
        self,
        inq: Any,
        outq: Any,
        synq: Any = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        maxtasks: int | None = None,
        sentinel: Any = None,
        on_exit: Callable[[int, int], object] | None = None,
        sigprotection: bool = True,
        wrap_exception: bool = True,
        max_memory_per_child: float | None = None,
        on_ready_counter: Any = None,
    ) -> None:
        if maxtasks is not None and (type(maxtasks) is not int or maxtasks < 1):
            raise ValueError("maxtasks must be a positive int or None")
        self.inq, self.outq, self.synq = inq, outq, synq
        self.initializer = initializer
        self.initargs = initargs
        self.maxtasks = maxtasks
        self._shutdown = sentinel
        self.on_exit = on_exit
        self.sigprotection = sigprotection
        self.wrap_exception = wrap_exception
        self.max_memory_per_child = max_memory_per_child
        self.on_ready_counter = on_ready_counter
        self.contribute_to_object(self)

    def contribute_to_object(self, obj: Any) -> Any:
        """Give ``obj`` (the process in the parent) the queues and the descriptors of their ends."""
        obj.inq, obj.outq, obj.synq = self.inq, self.outq, self.synq
        if isinstance(self.inq, Lane):
            # Nobody can write to or read from these descriptors; they tell one worker from another.
            obj.inqW_fd = obj.outqR_fd = self.inq.fileno()
            obj.synqR_fd = obj.synqW_fd = None
            obj._quick_put = obj._quick_get = obj.send_job_offset = obj._send_syn_offset = None
            return obj
        obj.inqW_fd = self.inq._writer.fileno()
        obj.outqR_fd = self.outq._reader.fileno()
        if self.synq:
            obj.synqR_fd = self.synq._reader.fileno()
            obj.synqW_fd = self.synq._writer.fileno()
            obj.send_syn_offset = _get_send_offset(self.synq._writer)
        else:
            obj.synqR_fd = obj.synqW_fd = obj._send_syn_offset = None
        obj._quick_put = self.inq._writer.send
        obj._quick_get = self.outq._reader.recv
        obj.send_job_offset = _get_send_offset(self.inq._writer)
        return obj

    def __reduce__(self) -> tuple[Any, ...]:
        # Messages name descriptors by the parent's numbers, whatever the child's are.
        numbers = ("inqW_fd", "outqR_fd", "synqR_fd", "synqW_fd")
        arguments = (
            self.inq,
            self.outq,
            self.synq,
            self.initializer,
            self.initargs,
            self.maxtasks,
            self._shutdown,
            self.on_exit,
            self.sigprotection,
            self.wrap_exception,
            self.max_memory_per_child,
            self.on_ready_counter,
        )
        return self.__class__, arguments, {name: getattr(self, name) for name in numbers}

    # ---- from birth to death ----

    def __call__(self) -> None:
        exit_in_process = sys.exit
        asked: list[Any] = [None]

        def exit(status: Any = None) -> NoReturn:
            # The only way to learn what a signal handler or a task has asked for.
            asked[0] = status
            exit_in_process(status)

        sys.exit = exit
        pid = os.getpid()
        if not self._is_served():
            self._make_child_methods()
        self._begin(pid)
        self.on_loop_start(pid=pid)
        try:
            sys.exit(self.workloop(pid=pid))
        except Exception as exc:
            error("Pool process %r error: %r", self, exc, exc_info=True)
            self._do_exit(pid, asked[0], exc)
        finally:
            self._do_exit(pid, asked[0], None)

    def _begin(self, pid: int) -> None:
        announces = getattr(self.outq, "announces", False)
        if announces:
            self.outq.hold_lifeline()
        try:
            self.after_fork()
        except BaseException as exc:
            if announces:
                info = wire.failure(exc)
                try:
                    self.outq.put((UNFIT, (pid, info)))
                except Exception as refused:
                    # What it has with it is too much: its name and the traceback are not.
                    self.outq.put((UNFIT, (pid, wire.abridged(info, refused))))
            raise
        if announces:
            self.outq.announce()

    def after_fork(self) -> None:
        """Make this process a worker: signals, descriptors, the initializer."""
        # Before any code of the user's: the parent may have been exiting when it forked.
        clear_terminate_handler_fired()
        _busy[0] = False
        for queue, end in ((self.inq, "_writer"), (self.outq, "_reader")):
            if hasattr(queue, end):
                getattr(queue, end).close()
        if self.initializer is not None:
            here = os.getpid()
            try:
                self.initializer(*self.initargs)
            finally:
                wire.end_if_stray(here)
        # After the initializer, which may have set handlers of its own.
        take_over_signals(full=self.sigprotection)
        if SIG_SOFT_TIMEOUT is not None:
            _signal.signal(SIG_SOFT_TIMEOUT, soft_timeout_sighandler)
        # Ctrl-C goes to the whole group; what becomes of the workers is the parent's decision.
        _signal.signal(_signal.SIGINT, _signal.SIG_IGN)

    def on_loop_start(self, pid: int) -> None:
        """Called once, before the first task. For subclasses."""

    def prepare_result(self, result: Any) -> Any:
        """Called with what a task returned; returns what to send. For subclasses."""
        return result

    def _do_exit(self, pid: int, exitcode: Any, exc: BaseException | None = None) -> None:
        if exitcode is None:
            exitcode = EX_FAILURE if exc else EX_OK
        elif not isinstance(exitcode, int):
            # As everywhere in Python, `sys.exit("text")` is a failure that says why.
            print(exitcode, file=sys.stderr)
            exitcode = EX_FAILURE
        if self.on_exit is not None:
            self.on_exit(pid, exitcode)
        try:
            self._flush()
            # The parent answers DEATH with the terminating signal; arriving within the message
            # it would leave a lock of the queue taken.
            mask = _signal.pthread_sigmask(_signal.SIG_BLOCK, {TERM_NUMBER})
            try:
                self.outq.put((DEATH, (pid, exitcode)))
            finally:
                _signal.pthread_sigmask(_signal.SIG_SETMASK, mask)
        finally:
            os._exit(exitcode & 0xFF)

    def _flush(self) -> None:
        """Let nothing be lost that tasks have printed or put on queues."""
        for stream in (sys.stdout, sys.stderr):
            try:  # noqa: SIM105  (contextlib is dear to import)
                stream.flush()
            except Exception:
                pass
        if util._finalizer_registry:
            from threading import Thread

            # In a thread: a queue that nobody reads would keep the worker here for ever.
            finishing = Thread(target=util._run_finalizers, daemon=True)
            finishing.start()
            finishing.join(FLUSH_TIMEOUT)

    # ---- the loop ----

    def workloop(
        self,
        debug: Callable[..., object] = debug,
        now: Callable[[], float] = monotonic,
        pid: int | None = None,
    ) -> int:
        """Run tasks until there is a reason to stop; returns the exit status."""
        if self._is_served():
            return self._serve(debug)
        here = os.getpid()
        pid = pid or here
        put, wait_for_job = self.outq.put, self.wait_for_job
        inqW_fd, synqW_fd = self.inqW_fd, self.synqW_fd  # type: ignore[attr-defined]
        maxtasks, memory_limit = self.maxtasks, self.max_memory_per_child or 0
        completed = 0
        try:
            while maxtasks is None or completed < maxtasks:
                message = None if terminate_handler_fired() else wait_for_job()
                if terminate_handler_fired():
                    # Its SystemExit was swallowed: by the last task, or while this one was decoded
                    # (that can be any import; even the compiler forgets an exception at times).
                    raise SystemExit(EX_FAILURE)
                if not message:
                    continue
                kind, task = message
                assert kind == TASK
                job, i, fun, args, kwargs = task
                put((ACK, (job, i, now(), pid, synqW_fd)))
                if self.wait_for_syn is not None and not self._may_run(job):
                    continue
                outcome, ending = self._run(here, fun, args, kwargs)
                # Nothing of the task may live on while the worker waits for the next one.
                del message, task, fun, args, kwargs
                try:
                    put((READY, (job, i, outcome, inqW_fd)))
                except Exception as exc:
                    info = wire.unsent(exc, outcome[1])
                    put((READY, (job, i, (False, info), inqW_fd)))
                del outcome
                completed += 1
                if ending is not None:
                    raise ending
                if memory_limit > 0 and self._is_above(memory_limit):
                    return EX_RECYCLE
            debug("worker exiting after %d tasks", completed)
            return EX_RECYCLE if maxtasks else EX_OK
        finally:
            self._ensure_messages_consumed(completed=completed)

    def _is_served(self) -> bool:
        """Whether the loop is the native drive's: not if a subclass gets its tasks itself."""
        cls = type(self)
        return isinstance(self.inq, Lane) and (
            cls is Worker
            or (
                cls._make_child_methods is Worker._make_child_methods
                and cls._make_protected_receive is Worker._make_protected_receive
                and cls._make_recv_method is Worker._make_recv_method
            )
        )

    def _serve(self, debug: Callable[..., object]) -> int:
        """The loop of a worker of a native drive."""
        limit = self.max_memory_per_child or 0
        plain = type(self).prepare_result is Worker.prepare_result
        prepare = None if plain else self.prepare_result
        completed, is_above = self.inq.shared.serve(
            wire,
            prepare,
            self.maxtasks or 0,
            partial(self._is_above, limit) if limit > 0 else None,
            self._shutdown.is_set if self._shutdown else None,
            _should_have_exited,
        )
        debug("worker exiting after %d tasks", completed)
        return EX_RECYCLE if is_above or (self.maxtasks and completed >= self.maxtasks) else EX_OK

    def _run(
        self, here: int, fun: Any, args: Any, kwargs: Any
    ) -> tuple[Outcome, BaseException | None]:
        """Call a task in the process `here`.

        Returns its outcome, and the exception that ends the worker, if it does.
        """
        try:
            try:
                _busy[0] = True
                return (True, self.prepare_result(fun(*args, **kwargs))), None
            finally:
                _busy[0] = False
                wire.end_if_stray(here)
        except BaseException as exc:
            if terminate_handler_fired():
                # Our own handler has run: the worker is on its way out, and whatever exception
                # this is, the task is unfinished. Reporting it would make a caller that
                # acknowledges finished work (Celery's acks_late) drop a task that never ran to
                # its end; silence makes it a lost one.
                raise
            # SystemExit and KeyboardInterrupt can only be the task's own here.
            ending = exc if isinstance(exc, (SystemExit, KeyboardInterrupt)) else None
            return (False, wire.failure(exc)), ending

    def _may_run(self, job: int) -> bool:
        """Wait for leave to run a task that has been announced."""
        assert self.wait_for_syn is not None
        waits = 0
        while True:
            answer = self.wait_for_syn()
            if answer:
                kind, _ = answer
                assert kind in (ACK, NACK)
                return bool(kind == ACK)
            waits += 1
            if waits > 60:
                fd = self.synq._reader.fileno()
                error("!!!WAIT FOR ACK TIMEOUT: job:%r fd:%r!!!", job, fd)

    def _is_above(self, limit: float) -> bool:
        # What it has now: its greatest ever may have been its parent's, which forked or started it.
        used = resident_kib() or mem_rss()
        if used <= 0:
            error("worker unable to determine memory usage")
        if used > limit:
            warning(
                "child process exiting after exceeding memory limit (%sKiB / %sKiB)", used, limit
            )
        return used > limit

    def _ensure_messages_consumed(self, completed: int) -> bool:
        """Wait until the parent has read all results, for 30 seconds at most.

        Returns whether it is known to have. Where results outlive the worker there is no need to,
        and a worker that is told to terminate has less patience: its parent may wait for it.
        """
        if not self.on_ready_counter or getattr(self.outq, "outlives_writer", False):
            return False
        longest = GUARANTEE_MESSAGE_CONSUMPTION_RETRY_INTERVAL
        patience = GUARANTEE_MESSAGE_CONSUMPTION_RETRY_LIMIT * longest
        deadline = monotonic() + (FLUSH_TIMEOUT if terminate_handler_fired() else patience)
        pause = longest / 100
        while self.on_ready_counter.value < completed:
            if monotonic() > deadline:
                warning("could not ensure all messages were consumed prior to exiting")
                return False
            time.sleep(pause)
            pause = min(2 * pause, longest)
        debug("ensured that all messages are consumed")
        return True

    # ---- receiving ----

    def _make_child_methods(self, loads: Callable[[Any], Any] = pickle_loads) -> None:
        self.wait_for_job = self._make_protected_receive(self.inq)
        self.wait_for_syn = self._make_protected_receive(self.synq) if self.synq else None

    def _make_recv_method(self, conn: Any) -> Callable[[float], tuple[bool, Any]]:
        """How to take a message from a queue: ``(False, None)`` if there is none in time."""
        if not hasattr(conn, "_reader"):

            def receive_from_thread(timeout: float) -> tuple[bool, Any]:
                from queue import Empty

                try:
                    return True, conn.get(timeout=timeout)
                except Empty:
                    return False, None

            return receive_from_thread
        get_payload = getattr(conn, "get_payload", None)
        if get_payload:
            decode = getattr(conn, "decode", wire.decode_message)

            def receive_blocking(timeout: float) -> tuple[bool, Any]:
                return True, decode(get_payload())

            return receive_blocking
        poll = conn._reader.poll

        def receive_polling(timeout: float) -> tuple[bool, Any]:
            return (True, conn.get()) if poll(timeout) else (False, None)

        return receive_polling

    def _make_protected_receive(self, conn: Any) -> Callable[[], Any]:
        """A function that waits for a message, and exits when there will be none."""
        receive_from = self._make_recv_method(conn)
        should_shutdown = self._shutdown.is_set if self._shutdown else bool

        def receive(debug: Callable[..., object] = debug) -> Any:
            if should_shutdown():
                debug("worker got sentinel -- exiting")
                raise SystemExit(EX_OK)
            try:
                ready, message = receive_from(1.0)
            except (EOFError, OSError) as exc:
                if get_errno(exc) == errno.EINTR:
                    return None
                debug("worker got %s -- exiting", type(exc).__name__)
                raise SystemExit(EX_FAILURE) from None
            if not ready:
                return None
            if message is None:
                debug("worker got sentinel -- exiting")
                raise SystemExit(EX_FAILURE)
            return message

        return receive


# A child that is not forked imports what its pickle names: for a plain worker not the whole of the
# public module.


def _new_worker(*arguments: Any) -> Worker:
    return Worker(*arguments)


def _reduce_worker(worker: Worker) -> tuple[Any, ...]:
    return (_new_worker, *worker.__reduce__()[1:])


ForkingPickler.register(Worker, _reduce_worker)
