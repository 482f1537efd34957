"""Fixtures that every test gets: one body for all start methods, and nothing left behind."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import billiard
import billiard.util
from billiard import _core, resource_tracker

START_METHODS = ("fork", "spawn", "forkserver")
#: seconds that leftovers get to disappear by themselves (threads that are ending, zombies)
SETTLE = 30.0


def pytest_configure(config: pytest.Config) -> None:
    """What children inherit: a temporary directory (what is left in it is ours), and signals."""
    tempfile.tempdir = os.environ["TMPDIR"] = tempfile.mkdtemp(prefix="billiard-tests-")
    # A shell's background jobs ignore these, and so would all children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(os.environ["TMPDIR"], ignore_errors=True)


@pytest.fixture(params=START_METHODS)
def ctx(request: pytest.FixtureRequest) -> Any:
    """The context of each start method in turn."""
    return billiard.get_context(request.param)


@pytest.fixture(scope="session", autouse=True)
def _permanent_helpers() -> Iterator[None]:
    """Make what lives as long as the program before anything is counted.

    That is the fork server, and the resource tracker of programs with `billiard.shared_memory`.
    """
    faulthandler.enable()
    resource_tracker.ensure_running()
    _core.lifeline()  # by which workers of pools hear that this process has ended
    billiard.util.get_temp_dir()
    for method in START_METHODS:
        process = billiard.get_context(method).Process(target=int)  # nothing, and importable
        process.start()
        process.join()
    # Every test collects its garbage: what is there already need not be looked at each time.
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
    resource_tracker._resource_tracker._stop()


def _children() -> dict[int, str]:
    """pid -> command of every child of this process, zombies included."""
    found = {}
    me = str(os.getpid())
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                stat = (entry / "stat").read_text()
                name, rest = stat[stat.index("(") + 1 :].rsplit(")", 1)
                state, parent = rest.split()[:2]
                if parent == me:
                    found[int(entry.name)] = f"{name} ({state})"
    return found


def _descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    # The arena grows when it must, and stays.
    return {fd: what for fd, what in found.items() if "memfd:billiard-arena" not in what}


def _names() -> set[str]:
    """What has a name in shared memory, and what of ours has one in the temporary directory.

    Semaphores with a name are multiprocessing's, in some other program: ours have none.
    """
    shm = {f"/dev/shm/{n}" for n in os.listdir("/dev/shm") if not n.startswith("sem.mp-")}
    tmp = tempfile.gettempdir()
    mine = {
        f"{tmp}/{n}" for n in os.listdir(tmp) if n.startswith(("pymp-", "billiard-", "listener-"))
    }
    return shm | mine


def _leftovers(before: dict[str, Any]) -> list[str]:
    gc.collect()
    billiard.active_children()  # reaps
    left = [f"child {p}: {c}" for p, c in _children().items() if p not in before["children"]]
    left += [f"thread {t.name}" for t in threading.enumerate() if t not in before["threads"]]
    left += [f"name {n}" for n in _names() - before["names"]]
    fds = _descriptors()
    left += [f"fd {n}: {what}" for n, what in fds.items() if before["fds"].get(n) != what]
    return left


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest, _permanent_helpers: None) -> Iterator[None]:
    """Fail a test that leaves a child, an fd, a thread or a shared-memory name."""
    before = {
        "children": _children(),
        "threads": set(threading.enumerate()),
        "names": _names(),
        "fds": _descriptors(),
    }
    yield
    # A pool that reports an error asks for the logger, and from then on everything is logged.
    billiard.util._logger = None
    deadline = time.monotonic() + SETTLE
    while (left := _leftovers(before)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not left, f"left behind: {left}"
