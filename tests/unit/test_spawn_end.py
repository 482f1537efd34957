"""How a new interpreter ends, and what its collector is like: as in any program."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scripts import run, run_file

import billiard
from billiard import _core, spawn
from billiard.connection import Connection

SPAWN = billiard.get_context("spawn")
QUICK = 77

kept: list[Any] = []


def exit_code(target: Callable[..., object], *args: object) -> int | None:
    """Of a child whose end is `QUICK` if the interpreter is not taken apart."""
    child = SPAWN.Process(target=mark_quick_end, args=(target, *args))
    child.start()
    child.join(60)
    code: int | None = child.exitcode
    return code


def mark_quick_end(target: Callable[..., object], *args: object) -> None:
    # What a test run has imported is no measure for what a program has.
    known = {*sys.stdlib_module_names, "billiard"}
    for name, module in list(sys.modules.items()):
        foreign = name.partition(".")[0] not in known
        if foreign and str(getattr(module, "__file__", "")).endswith(".so"):
            del sys.modules[name]
    sys.modules.pop("_ctypes", None)
    sys.modules.pop("_sqlite3", None)
    _core.exit = lambda status: os._exit(QUICK)
    target(*args)


def nothing() -> None:
    pass


def keep_read_only() -> None:
    kept.append(open(os.devnull))  # noqa: SIM115
    kept.append(open(os.devnull, "w"))  # noqa: SIM115
    kept[-1].close()


def keep_unflushed(path: Path, mode: str) -> None:
    file = path.open(mode)
    file.write("text" if mode == "w" else b"text")
    me: list[Any] = [file]
    me.append(me)  # only the collector finds it
    kept.append(me)


class Ending:
    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_WRONLY | os.O_CREAT)
        self.write = os.write  # modules may have been emptied by then

    def __del__(self) -> None:
        self.write(self.fd, b"ended")


def keep_with_finalizer(path: Path) -> None:
    kept.append(Ending(path))


def keep_generator(path: Path) -> None:
    def generator() -> Iterator[None]:
        file = path.open("w")
        try:
            yield
        finally:
            file.write("ended")
            file.close()

    started = generator()
    next(started)
    kept.append(started)


def keep_database(path: Path) -> None:
    sys.modules["_sqlite3"] = sqlite3  # as imported by the program itself
    kept.append(sqlite3.connect(path))


def test_nothing_is_taken_apart_where_nobody_can_tell() -> None:
    assert exit_code(nothing) == QUICK
    assert exit_code(keep_read_only) == QUICK


def test_what_an_open_file_has_buffered_is_written(tmp_path: Path) -> None:
    for mode in ("w", "wb"):
        assert exit_code(keep_unflushed, tmp_path / mode, mode) == 0
        assert (tmp_path / mode).read_text() == "text"


@pytest.mark.parametrize("keep", [keep_with_finalizer, keep_generator])
def test_finalizers_run(tmp_path: Path, keep: Callable[[Path], None]) -> None:
    assert exit_code(keep, tmp_path / "file") == 0
    assert (tmp_path / "file").read_text() == "ended"


def test_a_database_is_left_to_python(tmp_path: Path) -> None:
    assert exit_code(keep_database, tmp_path / "file") == 0


def test_an_extension_module_is_left_to_python(monkeypatch: pytest.MonkeyPatch) -> None:
    before = dict(sys.modules)
    for name, module in before.items():
        if str(getattr(module, "__file__", "")).endswith(".so") or name in {"_ctypes", "_sqlite3"}:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(_core, "with_finalizers", lambda objects: [])
    assert spawn._is_tidy()
    module = type(sys)("foreign._speedups")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert spawn._is_tidy()
    module.__file__ = "/x/foreign/_speedups.abi3.so"
    assert not spawn._is_tidy()


@pytest.mark.parametrize("end", ["", "kept.append(open('file', 'w'))"])
def test_whatever_way_it_ends_exit_functions_run_and_text_is_written(
    tmp_path: Path, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = f"""
        import atexit, sys, billiard
        kept = []
        def last():
            sys.stdout.write("last ")
            sys.stderr.write("error")
        def target():
            atexit.register(last)
            sys.stdout.write("target ")
            {end}
            sys.exit(5)
        if __name__ == "__main__":
            child = billiard.get_context("spawn").Process(target=target)
            child.start()
            child.join()
            print(child.exitcode)
    """
    done = run_file(tmp_path, source)
    assert (done.stdout, done.stderr) == ("target last 5\n", "error")


def test_an_output_that_cannot_be_written_is_reported_as_by_python(tmp_path: Path) -> None:
    source = """
        import atexit, os, sys, billiard
        def target():
            sys.stdout = open("/dev/full", "w")
            atexit.register(sys.stdout.write, "text")
        if __name__ == "__main__":
            child = billiard.get_context("spawn").Process(target=target)
            child.start()
            child.join()
            print(child.exitcode)
    """
    done = run_file(tmp_path, source)
    assert done.stdout == "120\n"
    assert "No space left" in done.stderr


def wait_and_write(path: Path) -> None:
    time.sleep(0.1)
    path.write_text("waited for")


def leave_thread(path: Path, daemon: bool) -> None:
    if daemon:
        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
    else:
        threading.Thread(target=wait_and_write, args=(path,)).start()


def test_threads_are_waited_for_and_daemonic_ones_are_not(tmp_path: Path) -> None:
    assert exit_code(leave_thread, tmp_path / "file", False) == QUICK
    assert (tmp_path / "file").read_text() == "waited for"
    assert exit_code(leave_thread, tmp_path / "file", True) == QUICK


# ---- the collector ----


def tell_of_collector(conn: Connection) -> None:
    conn.send((gc.get_threshold(), gc.isenabled(), gc.get_freeze_count(), gc.get_count()[0] < 5000))


class Cycle:
    pass


def tell_what_is_collected(conn: Connection) -> None:
    from weakref import ref

    import made_by_main  # type: ignore[import-not-found]

    gc.collect()
    conn.send(isinstance(made_by_main.watched, ref) and made_by_main.watched() is None)


def ask(target: Callable[..., object]) -> Any:
    ours, its = billiard.Pipe()
    child = SPAWN.Process(target=target, args=(its,))
    child.start()
    its.close()
    with ours, contextlib.suppress(EOFError):
        answer = ours.recv()
    child.join(60)
    return answer


def test_the_collector_of_a_child_is_as_python_makes_it() -> None:
    # Some interpreters freeze what is their own.
    frozen = int(run("-c", "import gc; print(gc.get_freeze_count())").stdout)
    assert ask(tell_of_collector) == (gc.get_threshold(), True, frozen, True)


def test_garbage_of_imports_is_collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = """
import weakref
class Cycle: pass
thing = Cycle()
thing.me = thing
watched = weakref.ref(thing)
del thing
"""
    (tmp_path / "made_by_main.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert ask(tell_what_is_collected)


@pytest.mark.parametrize(
    ("statement", "outcome"),
    [
        ("gc.set_threshold(123)", "(123, True, False)"),
        ("gc.disable()", "(700, False, False)"),
        ("gc.freeze()", "(700, True, True)"),
    ],
)
def test_what_the_main_module_tells_the_collector_stays(
    tmp_path: Path, statement: str, outcome: str
) -> None:
    source = f"""
        import gc, billiard
        frozen = gc.get_freeze_count()
        {statement}
        def target():
            # Newer interpreters have other numbers.
            number = gc.get_threshold()[0]
            number = 700 if number == USUAL else number
            print((number, gc.isenabled(), gc.get_freeze_count() > frozen))
        if __name__ == "__main__":
            child = billiard.get_context("spawn").Process(target=target)
            child.start()
            child.join()
    """.replace("USUAL", str(gc.get_threshold()[0]))
    assert run_file(tmp_path, source).stdout == f"{outcome}\n"


def test_exit_functions_run_once(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert exit_code(register_and_keep, path) == 0
    assert path.read_text() == "once"


def register_and_keep(path: Path) -> None:
    kept.append(Ending(path.with_name("other")))  # python takes the interpreter apart
    atexit.register(append, path)


def append(path: Path) -> None:
    with path.open("a") as file:
        file.write("once")
