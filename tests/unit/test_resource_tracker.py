"""billiard.resource_tracker: one process per program that unlinks what is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import billiard
from billiard import resource_tracker

ROOT = Path(billiard.__file__).parents[1]
# What these programs do to their tracker is not for the test's own.
PRELUDE = """
import os, signal, sys, warnings, threading
import billiard
from billiard import resource_tracker as rt
tracker = rt._resource_tracker
warnings.simplefilter('error')
"""


def run(code: str, *command: str) -> tuple[list[str], str]:
    """The lines of a program's standard output, and its standard error with the tracker's."""
    done = subprocess.run(
        [sys.executable, *(command or ("-c", PRELUDE + code))],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), done.stderr


def test_tracker_is_started_once_and_ends_with_the_program() -> None:
    lines, errors = run(
        "assert tracker._pid is None\n"
        "rt.ensure_running(); pid = tracker._pid\n"
        "rt.ensure_running(); assert pid == tracker._pid and rt.getfd() == tracker._fd\n"
        "assert not os.get_inheritable(rt.getfd())\n"
        "rt.register('nothing', 'dummy'); rt.unregister('nothing', 'dummy')\n"
        "tracker._stop(); assert tracker._fd is None; print(tracker._exitcode)\n"
        "tracker._stop()\n"
    )
    assert lines == ["0"] and errors == ""


def test_what_is_left_is_unlinked_with_a_warning() -> None:
    name = f"/psm_billiard_{os.getpid()}"
    lines, errors = run(
        "from billiard import _core\n"
        f"os.close(_core.shm_open({name!r}, os.O_CREAT | os.O_RDWR, 0o600))\n"
        f"rt.register({name!r}, 'shared_memory'); rt.register('/psm_no_such', 'shared_memory')\n"
        "tracker._stop(); print(tracker._exitcode)\n"
    )
    assert not os.path.exists(f"/dev/shm{name}")
    assert lines == ["2"]
    assert "2 leaked shared_memory objects" in errors and "'/psm_no_such': [Errno 2]" in errors


def test_names_with_colons_are_tracked() -> None:
    lines, errors = run(
        "rt.register('a:b:é', 'dummy'); rt.unregister('a:b:é', 'dummy')\n"
        "tracker._stop(); print(tracker._exitcode)\n"
    )
    assert lines == ["0"] and errors == ""


def test_unknown_types_and_names_are_reported_by_the_tracker() -> None:
    lines, errors = run(
        "rt.register('x', 'nonsense'); rt.unregister('y', 'dummy')\n"
        "os.write(rt.getfd(), b'SHOUT:x:dummy\\n')\n"
        "tracker._stop(); print(tracker._exitcode)\n"
    )
    assert lines == ["3"]
    assert "unknown resource type nonsense" in errors and "unrecognized command" in errors


def test_bad_names_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="too long"):
        resource_tracker.register("x" * 600, "dummy")
    with pytest.raises(ValueError, match="line end"):
        resource_tracker.register("x\ny", "dummy")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_tracker_survives_what_ends_programs(number: int) -> None:
    lines, _ = run(
        "rt.ensure_running(); pid = tracker._pid\n"
        f"os.kill(pid, {int(number)})\n"
        "rt.register('x', 'dummy'); rt.unregister('x', 'dummy')\n"
        "assert tracker._pid == pid\n"
        "tracker._stop(); print(tracker._exitcode)\n"
    )
    assert lines == ["0"]


def test_tracker_that_was_killed_is_started_again_with_a_warning() -> None:
    lines, _ = run(
        "import select\n"
        "rt.ensure_running(); pid = tracker._pid\n"
        "fd = os.pidfd_open(pid); os.kill(pid, signal.SIGKILL); select.select([fd], [], [])\n"
        "with warnings.catch_warnings(record=True) as seen:\n"
        "    warnings.simplefilter('always')\n"
        "    rt.register('x', 'dummy')\n"
        "print(len(seen), seen[0].message, tracker._pid != pid)\n"
        "rt.unregister('x', 'dummy'); tracker._stop(); print(tracker._exitcode)\n"
    )
    assert lines[0].startswith("1 resource_tracker: process died") and lines[0].endswith("True")
    assert lines[1] == "0"


def test_tracker_that_is_killed_while_threads_use_it_costs_none_of_them_anything() -> None:
    lines, errors = run(
        "warnings.simplefilter('ignore')\n"
        "errors, done = [], threading.Event()\n"
        "def use():\n"
        "    try:\n"
        "        while not done.is_set(): rt.register('x', 'dummy')\n"
        "    except Exception as exc:\n"
        "        errors.append(exc)\n"
        "threads = [threading.Thread(target=use) for _ in range(4)]\n"
        "rt.ensure_running()\n"
        "for thread in threads: thread.start()\n"
        "for _ in range(15):\n"
        "    pid = tracker._pid\n"
        "    os.kill(pid, signal.SIGKILL)\n"
        "    while tracker._pid in (pid, None) and not errors: os.sched_yield()\n"
        "done.set()\n"
        "for thread in threads: thread.join()\n"
        "print(errors); tracker._stop()\n"
    )
    assert lines == ["[]"] and errors == ""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_children_use_the_program_s_tracker(method: str, tmp_path: Path) -> None:
    """What a child registered is the program's, even after the child was killed."""
    program = tmp_path / "program.py"
    program.write_text(
        PRELUDE + "def child():\n"
        "    rt.register('x', 'dummy')\n"
        "    assert tracker._pid is None\n"
        "    os.kill(os.getpid(), 9)\n"
        "if __name__ == '__main__':\n"
        "    rt.ensure_running()\n"
        f"    p = billiard.get_context({method!r}).Process(target=child)\n"
        "    p.start(); p.join(); assert p.exitcode == -9, p.exitcode\n"
        "    rt.unregister('x', 'dummy')\n"
        "    tracker._stop(); print(tracker._exitcode)\n"
    )
    lines, errors = run("", str(program))
    assert lines == ["0"] and "resource_tracker" not in errors


def test_lock_is_free_in_a_forked_child() -> None:
    lines, _ = run(
        "rt.ensure_running()\n"
        "with tracker._lock:\n"
        "    pid = os.fork()\n"
        "    if not pid:\n"
        "        rt.register('x', 'dummy'); rt.unregister('x', 'dummy'); os._exit(0)\n"
        "print(os.waitpid(pid, 0)[1]); tracker._stop(); print(tracker._exitcode)\n"
    )
    assert lines == ["0", "0"]


def test_call_from_a_finalizer_during_the_start_does_not_hang() -> None:
    lines, _ = run(
        "with tracker._lock, warnings.catch_warnings(record=True) as seen:\n"
        "    warnings.simplefilter('always')\n"
        "    try:\n"
        "        rt.ensure_running()\n"
        "    except rt.ReentrantCallError:\n"
        "        print('refused')\n"
        "    rt.register('x', 'dummy')\n"
        "print(len(seen), 'might leak' in str(seen[0].message))\n"
        "rt.ensure_running()\n"
        "with tracker._lock:\n"
        "    rt.register('x', 'dummy')\n"
        "rt.unregister('x', 'dummy'); tracker._stop(); print(tracker._exitcode)\n"
    )
    assert lines == ["refused", "1 True", "0"]
