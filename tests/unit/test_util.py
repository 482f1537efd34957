"""billiard.util: finalizers, after-fork callbacks, logging, exit."""

from __future__ import annotations

import errno
import gc
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import billiard
from billiard import util

ROOT = Path(billiard.__file__).parents[1]


def run(code: str, *options: str, **env: str) -> str:
    """The standard output of a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, *options, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class Thing:
    pass


# ---- finalizers ----


def test_finalizer_runs_once_when_its_object_dies() -> None:
    seen: list[Any] = []
    thing = Thing()
    final = util.Finalize(thing, seen.append, args=("gone",))
    assert final.still_active()
    del thing
    gc.collect()
    assert seen == ["gone"]
    assert final() is None
    assert seen == ["gone"] and not final.still_active()


def test_calling_a_finalizer_returns_what_its_callback_returns() -> None:
    thing = Thing()
    final = util.Finalize(thing, dict, kwargs={"a": 1})
    assert final() == {"a": 1}
    assert final() is None


def test_cancelled_finalizer_never_runs() -> None:
    seen: list[Any] = []
    thing = Thing()
    final = util.Finalize(thing, seen.append, args=(1,))
    final.cancel()
    final.cancel()
    del thing
    gc.collect()
    assert final() is None and seen == []


def test_finalizers_at_exit_run_by_priority_then_newest_first() -> None:
    kept = dict(util._finalizer_registry)
    util._finalizer_registry.clear()
    try:
        seen: list[str] = []
        thing = Thing()
        util.Finalize(thing, seen.append, args=("never",))
        for name, priority in [("a", 0), ("b", 10), ("c", 0), ("d", -5), ("e", 10)]:
            util.Finalize(None, seen.append, args=(name,), exitpriority=priority)
        util._run_finalizers(0)
        assert seen == ["e", "b", "c", "a"]
        util._run_finalizers()
        assert seen == ["e", "b", "c", "a", "d"]
        assert util._finalizer_registry == {}
    finally:
        util._finalizer_registry.update(kept)


def test_finalizer_that_raises_does_not_stop_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[str] = []
    util.Finalize(None, seen.append, args=("last",), exitpriority=1001)
    util.Finalize(None, int, args=("x",), exitpriority=1002)
    util._run_finalizers(1001)
    assert seen == ["last"]
    assert "ValueError" in capsys.readouterr().err


def test_finalizer_needs_an_object_or_a_priority() -> None:
    with pytest.raises(ValueError, match="exitpriority"):
        util.Finalize(None, print)
    with pytest.raises(TypeError, match="exitpriority"):
        util.Finalize(Thing(), print, exitpriority="high")  # type: ignore[arg-type]


def test_finalizer_repr_tells_callback_and_state() -> None:
    thing = Thing()
    final = util.Finalize(thing, print, args=(1,), kwargs={"k": 2}, exitpriority=3)
    assert repr(final) == (
        "<Finalize object, callback=print, args=(1,), kwargs={'k': 2}, exitpriority=3>"
    )
    final.cancel()
    assert repr(final) == "<Finalize object, dead>"


def test_finalizer_of_another_process_does_nothing() -> None:
    out = run(
        "import os\n"
        "from billiard.util import Finalize\n"
        "f = Finalize(None, print, args=('ran', ), exitpriority=0)\n"
        "pid = os.fork()\n"
        "if not pid:\n"
        "    f(); os._exit(0)\n"
        "os.waitpid(pid, 0)\n"
    )
    assert out == "ran\n"


# ---- after fork ----


def test_after_fork_callbacks_run_in_order_and_survive_an_exception() -> None:
    seen: list[Any] = []
    first, second, dead = Thing(), Thing(), Thing()
    util.register_after_fork(first, lambda obj: seen.append(("first", obj is first)))
    util.register_after_fork(first, lambda obj: 1 / 0)
    util.register_after_fork(dead, lambda obj: seen.append("dead"))
    util.register_after_fork(second, lambda obj: seen.append(("second", obj is second)))
    del dead
    gc.collect()
    mine = {k: v for k, v in util._afterfork_registry.items() if v in (first, second)}
    assert len(mine) == 3
    read, write = os.pipe()
    process = billiard.get_context("fork").Process(
        target=lambda: os.write(write, repr(seen).encode())
    )
    process.start()
    process.join()
    assert os.read(read, 1000) == b"[('first', True), ('second', True)]"
    os.close(read)
    os.close(write)
    assert seen == []


def test_fork_aware_lock_is_free_in_a_child() -> None:
    lock = util.ForkAwareThreadLock()
    with lock:
        assert not lock.acquire(False)
        process = billiard.get_context("fork").Process(
            target=lambda: sys.exit(7 if lock.acquire(False) else 8)
        )
        process.start()
        process.join()
        assert process.exitcode == 7
    assert lock.acquire(False)
    lock.release()


def test_fork_aware_local_is_empty_in_a_child_and_when_pickled() -> None:
    import pickle

    local = util.ForkAwareLocal()
    local.value = 1
    process = billiard.get_context("fork").Process(
        target=lambda: sys.exit(7 if not hasattr(local, "value") else 8)
    )
    process.start()
    process.join()
    assert process.exitcode == 7
    assert local.value == 1
    assert not hasattr(pickle.loads(pickle.dumps(local)), "value")


# ---- beside multiprocessing ----

BOTH = """
import os, sys
import {first}, {second}
import multiprocessing.util, billiard.util

class Thing: pass
mine, theirs = Thing(), Thing()
billiard.util.register_after_fork(mine, lambda _: print('fork billiard', flush=True))
multiprocessing.util.register_after_fork(theirs, lambda _: print('fork stdlib', flush=True))
multiprocessing.util.Finalize(None, print, args=('inherited',), exitpriority=0)

def child(step=None):
    billiard.util.Finalize(None, print, args=('end billiard',), exitpriority=0)
    multiprocessing.util.Finalize(None, print, args=('end stdlib',), exitpriority=0)
    if step:
        print('then', flush=True)
        start(step)

def start(by):
    p = sys.modules[by].get_context('fork').Process(target=child)
    p.start(); p.join(); assert p.exitcode == 0, p.exitcode

p = {maker}.get_context('fork').Process(target=child, args=({step!r},))
p.start(); p.join(); assert p.exitcode == 0, p.exitcode
os._exit(0)
"""
FORK = ["fork billiard", "fork stdlib"]
END = ["end billiard", "end stdlib"]


@pytest.mark.parametrize("first", ["billiard", "multiprocessing"])
@pytest.mark.parametrize("maker", ["billiard", "multiprocessing"])
@pytest.mark.parametrize("step", ["", "billiard", "multiprocessing"])
def test_a_child_serves_both_packages_registries_once(first: str, maker: str, step: str) -> None:
    second = {"billiard": "multiprocessing", "multiprocessing": "billiard"}[first]
    lines = run(BOTH.format(first=first, second=second, maker=maker, step=step)).splitlines()
    if step:
        at = lines.index("then")
        assert sorted(lines[:at]) == FORK
        assert sorted(lines[at + 1 : at + 3]) == FORK
        assert sorted(lines[at + 3 :]) == sorted(END + END)
    else:
        assert sorted(lines[:2]) == FORK and sorted(lines[2:]) == END


def test_a_child_leaves_the_other_package_s_daemons_alone() -> None:
    out = run(
        "import multiprocessing, billiard, time, os\n"
        "for maker, other in [(multiprocessing, billiard), (billiard, multiprocessing)]:\n"
        "    p = maker.get_context('fork').Process(target=time.sleep, args=(60,), daemon=True)\n"
        "    p.start()\n"
        "    q = other.get_context('fork').Process(target=int)\n"
        "    q.start(); q.join()\n"
        "    assert q.exitcode == 0 and p.is_alive()\n"
        "    p.terminate(); p.join(); print('ok')\n"
    )
    assert out.split() == ["ok", "ok"]


# ---- exit ----


def test_at_exit_daemons_are_terminated_and_other_children_joined() -> None:
    out = run(
        "import billiard, time, os\n"
        "ctx = billiard.get_context('fork')\n"
        "r, w = os.pipe()\n"
        "def wait():\n"
        "    os.close(w); os.read(r, 1); print('joined', flush=True)\n"
        "d = ctx.Process(target=time.sleep, args=(60,), daemon=True); d.start()\n"
        "p = ctx.Process(target=wait); p.start()\n"
        "from billiard.util import Finalize\n"
        "def left():\n"
        "    print(d.exitcode, p.exitcode, flush=True)\n"
        "Finalize(None, left, exitpriority=-1)\n"
        "Finalize(None, print, args=('first',), kwargs={'flush': True}, exitpriority=1)\n"
        "Finalize(None, os.close, args=(w,), exitpriority=0)\n"
    )
    assert out.splitlines() == ["first", "joined", f"{-signal.SIGTERM} 0"]


def test_is_exiting_is_true_from_the_exit_function_on() -> None:
    assert not util.is_exiting()
    out = run(
        "from billiard import util\n"
        "util.Finalize(None, lambda: print(util.is_exiting()), exitpriority=0)\n"
    )
    assert out == "True\n"


def test_temp_dir_is_private_and_removed_at_exit() -> None:
    out = run(
        "from billiard.util import get_temp_dir\n"
        "import os\n"
        "d = get_temp_dir(); assert d == get_temp_dir()\n"
        "open(os.path.join(d, 'file'), 'w').close()\n"
        "print(d, oct(os.stat(d).st_mode & 0o777))"
    )
    path, mode = out.split()
    assert mode == "0o700" and not os.path.exists(path)
    assert os.path.basename(path).startswith("pymp-")


def test_temp_dir_leaves_room_for_a_socket_s_name(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    out = run("from billiard.util import get_temp_dir; print(get_temp_dir())", TMPDIR=str(deep))
    assert len(out) < 80


# ---- logging ----


def test_nothing_is_logged_until_the_logger_is_asked_for() -> None:
    code = (
        "from billiard import util\n"
        "util.warning('lost')\n"
        "{}\n"
        "util.info('number %d', 1); util.sub_debug('hidden'); util.sub_warning('two')\n"
        "assert util._log_to_stderr and util._logger is util.get_logger()\n"
        "assert util._logger.name == 'multiprocessing' and not util._logger.propagate\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code.format("util.log_to_stderr(10)")],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    lines = done.stderr.splitlines()
    assert lines[:2] == ["[INFO/MainProcess] number 1", "[SUBWARNING/MainProcess] two"]
    assert "[INFO/MainProcess] process shutting down" in lines


def test_log_records_name_the_caller() -> None:
    import logging

    seen: list[logging.LogRecord] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record)

    logger = util.get_logger()
    before = logger.level
    logger.setLevel(1)
    handler = Handler()
    logger.addHandler(handler)
    try:
        for log in (util.sub_debug, util.debug, util.info, util.sub_warning, util.warning):
            log("text %s", 1, extra={"mark": 2})
        util.error("failed", exc_info=True)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
    assert {os.path.basename(record.pathname) for record in seen} == {"test_util.py"}
    assert [record.levelno for record in seen] == [5, 10, 20, 25, 30, 40]
    assert vars(seen[0])["mark"] == 2


# ---- the interpreter, the kernel ----


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["-O"],
        ["-OO", "-B", "-q"],
        ["-b"],
        ["-bb", "-W", "error"],
        ["-s", "-P"],
        ["-X", "dev", "-W", "ignore::UserWarning"],
        ["-X", "faulthandler", "-X", "utf8=1", "-X", "tracemalloc=3"],
    ],
    ids=" ".join,
)
def test_interpreter_options_are_those_of_subprocess(options: list[str]) -> None:
    out = run(
        "import subprocess; from billiard import util\n"
        "print(sorted(util._args_from_interpreter_flags()))\n"
        "print(sorted(subprocess._args_from_interpreter_flags()))",
        *options,
    )
    ours, theirs = out.splitlines()
    assert ours == theirs


def test_interpreter_options_pass_every_x_option_on() -> None:
    out = run(
        "from billiard import util; print(util._args_from_interpreter_flags())",
        "-X",
        "int_max_str_digits=5000",
    )
    assert "'-X', 'int_max_str_digits=5000'" in out


def test_pdeathsig_is_set_read_and_cleared() -> None:
    before = util.get_pdeathsig()
    try:
        for number in (signal.SIGTERM, 40, 0):
            util.set_pdeathsig(number)
            assert util.get_pdeathsig() == number
        with pytest.raises(OSError) as caught:
            util.set_pdeathsig(1000)
        assert caught.value.errno == errno.EINVAL
    finally:
        util.set_pdeathsig(before)


def test_eintr_retry_repeats_only_for_eintr() -> None:
    codes = [errno.EINTR, errno.EINTR, errno.EBADF]

    @util._eintr_retry
    def flaky() -> None:
        """Its text."""
        code = codes.pop(0)
        raise OSError(code, os.strerror(code))

    with pytest.raises(OSError) as caught:
        flaky()
    assert caught.value.errno == errno.EBADF and codes == []
    assert flaky.__doc__ == "Its text."


def test_finalizers_may_be_made_while_others_run_in_threads() -> None:
    """The registry changes under `_run_finalizers`, which must not notice."""
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            util.Finalize(Thing(), int)

    threads = [threading.Thread(target=churn) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(200):
            util._run_finalizers(10**9)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_at_exit_a_daemon_that_ignores_sigterm_is_killed() -> None:
    out = run(
        "import billiard, billiard.util, time, os, signal\n"
        "billiard.util._DAEMON_GRACE = 0.2\n"
        "r, w = os.pipe()\n"
        "def stubborn():\n"
        "    signal.signal(signal.SIGTERM, signal.SIG_IGN); os.write(w, b'x'); time.sleep(60)\n"
        "d = billiard.get_context('fork').Process(target=stubborn, daemon=True); d.start()\n"
        "os.read(r, 1)\n"
        "billiard.util.Finalize(None, lambda: print(d.exitcode), exitpriority=-1)\n"
    )
    assert out.split() == [str(-signal.SIGKILL)]
