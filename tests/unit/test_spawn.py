"""Start method spawn: the command, the preparation data, the main module, the descriptors."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import marshal
import os
import py_compile
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from scripts import ROOT, environment, run, run_file

import billiard
from billiard import process, spawn
from billiard.connection import Connection

SPAWN = billiard.get_context("spawn")


def nothing() -> None:
    pass


# ---- the command line ----


def test_the_command_line_names_the_child_s_entry_point() -> None:
    command = spawn.get_command_line(tracker_fd=3, pipe_handle=7)
    code = "from billiard.spawn import spawn_main; spawn_main(tracker_fd=3, pipe_handle=7)"
    assert command[0] == spawn.get_executable()
    assert command[-3:] == ["-c", code, "--billiard-fork"]


def test_the_command_line_of_a_frozen_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    command = spawn.get_command_line(pipe_handle=7, parent_pid=None)
    assert command == [sys.executable, "--billiard-fork", "pipe_handle=7", "parent_pid=None"]


def test_is_forking() -> None:
    assert spawn.is_forking(["program", "--billiard-fork", "pipe_handle=7"])
    assert not spawn.is_forking(["program", "x", "--billiard-fork"])
    assert not spawn.is_forking(["program"])


def test_freeze_support_becomes_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(spawn, "spawn_main", lambda **kwargs: seen.append(kwargs))
    monkeypatch.setattr(sys, "argv", ["program", "--billiard-fork", "pipe_handle=7", "x=None"])
    with pytest.raises(SystemExit):
        spawn.freeze_support()
    assert seen == [{"pipe_handle": 7, "x": None}]
    monkeypatch.setattr(sys, "argv", ["program"])
    spawn.freeze_support()
    assert len(seen) == 1


def test_a_frozen_program_starts_its_children(tmp_path: Path) -> None:
    """A launcher stands for the frozen executable: it runs the program, whatever it is given."""
    source = """
        import os, sys, billiard
        def target():
            print(sys.argv[0].endswith("program.py"), sys.argv[1:])
        sys.frozen, sys.executable = True, os.environ["LAUNCHER"]
        if __name__ == "__main__":
            billiard.freeze_support()
            process = billiard.get_context("spawn").Process(target=target)
            process.start()
            process.join()
            sys.exit(process.exitcode)
    """
    launcher = tmp_path / "launcher"
    launcher.write_text(f'#!/bin/sh\nexec {sys.executable} {tmp_path}/program.py "$@"\n')
    launcher.chmod(0o755)
    done = run_file(tmp_path, source, "argument", LAUNCHER=str(launcher))
    assert done.stdout == "True ['argument']\n"


def test_only_children_call_spawn_main() -> None:
    with pytest.raises(AssertionError, match="not the command line of a child"):
        spawn.spawn_main(0)


def test_the_interpreter_s_options_are_passed_on(tmp_path: Path) -> None:
    source = """
        import sys, billiard
        def target():
            print(sys.flags.optimize, sys._xoptions.get("mine"), sys.warnoptions)
        if __name__ == "__main__":
            for method in ("spawn", "forkserver"):
                process = billiard.get_context(method).Process(target=target)
                process.start()
                process.join()
    """
    (tmp_path / "program.py").write_text("\n".join(line[8:] for line in source.splitlines()))
    done = run("-OO", "-X", "mine=5", "-W", "error::UserWarning", tmp_path / "program.py")
    assert done.stdout == "2 5 ['error::UserWarning']\n" * 2, done.stderr


def test_a_child_is_started_as_if_by_hand(tmp_path: Path) -> None:
    """`site` runs: sitecustomize and .pth files are seen in the child."""
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.customized = True")
    source = """
        import sys, billiard
        def target():
            print(sys.customized, "site" in sys.modules)
        if __name__ == "__main__":
            process = billiard.get_context("spawn").Process(target=target)
            process.start()
            process.join()
    """
    done = run_file(tmp_path, source, PYTHONPATH=f"{ROOT}{os.pathsep}{tmp_path}")
    assert done.stdout == "True True\n"


# ---- what the child imports ----

#: what a child that runs `print` has imported beyond a bare interpreter
IMPORTED = {
    "__future__",
    "_collections",
    "_compat_pickle",
    "_functools",
    "_operator",
    "_pickle",
    "billiard",
    "billiard._core",
    "billiard._standin",
    "billiard.context",
    "billiard.exceptions",
    "billiard.process",
    "billiard.spawn",
    "collections",
    "copyreg",
    "functools",
    "gc",
    "itertools",
    "keyword",
    "multiprocessing",
    "operator",
    "reprlib",
    "types",
}


def test_a_child_imports_what_it_needs_and_no_more(tmp_path: Path) -> None:
    source = """
        import os, sys, billiard
        if __name__ == "__main__":
            code = "import sys; print(*sys.modules)"
            bare = set(os.popen(f"{sys.executable} -c '{code}'").read().split())
            process = billiard.get_context("spawn").Process(
                target=eval, args=("print(*__import__('sys').modules)",))
            process.start()
            process.join()
            print(*sorted(bare))
    """
    child, bare = run_file(tmp_path, source).stdout.splitlines()
    more = set(child.split()) - set(bare.split()) - {"__mp_main__"}
    # Newer interpreters may do with fewer.
    assert sorted(more - IMPORTED) == []
    assert "billiard.spawn" in more


# ---- the main module ----

PROGRAM = """
import sys, billiard
def target():
    main = sys.modules["__main__"]
    print(__name__, main.__name__, main is sys.modules["__mp_main__"], target is main.target)
class Thing:
    pass
def keeps(thing):
    global changed
    changed = thing
    print(type(thing) is Thing, sys.modules["__main__"].changed is thing)
if __name__ == "__main__":
    for method in ("spawn", "forkserver"):
        for function, args in ((target, ()), (keeps, (Thing(),))):
            process = billiard.get_context(method).Process(target=function, args=args)
            process.start()
            process.join()
            assert process.exitcode == 0
"""
REIMPORTED = "__mp_main__ __mp_main__ True True\nTrue True\n" * 2


def test_the_main_module_of_a_script(tmp_path: Path) -> None:
    assert run_file(tmp_path, PROGRAM).stdout == REIMPORTED


def test_the_main_module_of_a_relative_script_in_another_directory(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        PROGRAM.replace('if __name__ == "__main__":', 'if __name__ == "__main__":\n'
                        "    import os; os.chdir('/')")
    )  # fmt: skip
    done = run("program.py", cwd=tmp_path)
    assert done.stdout == REIMPORTED, done.stderr


def test_the_main_module_of_a_module_run_with_m(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "module.py").write_text(PROGRAM)
    done = run("-m", "package.module", cwd=tmp_path)
    assert done.stdout == REIMPORTED, done.stderr


LAUNCHED = """
import billiard, helper
if True:  # no guard: a __main__.py runs once
    for method in ("spawn", "forkserver"):
        process = billiard.get_context(method).Process(target=helper.target)
        process.start()
        process.join()
        assert process.exitcode == 0
"""
HELPER = """
import sys
def target():
    print(sys.modules["__main__"].__name__)
"""


@pytest.mark.parametrize("how", ["package", "directory", "zip"])
def test_a_main_file_of_a_package_directory_or_zip_is_not_imported_again(
    tmp_path: Path, how: str
) -> None:
    folder = tmp_path / "application"
    folder.mkdir()
    (folder / "__main__.py").write_text(LAUNCHED)
    command: tuple[str | Path, ...] = (folder,)
    (folder / "helper.py").write_text(HELPER)
    if how == "package":
        (folder / "__init__.py").write_text("")
        (folder / "helper.py").rename(tmp_path / "helper.py")
        command = ("-m", "application")
    if how == "zip":
        with zipfile.ZipFile(tmp_path / "application.zip", "w") as archive:
            for file in folder.iterdir():
                archive.write(file, file.name)
        command = (tmp_path / "application.zip",)
    done = run(*command, cwd=tmp_path)
    assert (done.stdout, done.returncode) == ("__main__\n" * 2, 0), done.stderr


INTERACTIVE = """
import billiard
for method in ("spawn", "forkserver"):
    process = billiard.get_context(method).Process(target=print, args=(method,))
    process.start(); process.join()

"""


def test_programs_that_are_typed_in(tmp_path: Path) -> None:
    assert run("-c", INTERACTIVE).stdout == "spawn\nforkserver\n"
    assert run("-", stdin=INTERACTIVE).stdout == "spawn\nforkserver\n"
    assert run("-i", stdin=INTERACTIVE).stdout == "spawn\nforkserver\n"


def test_lambdas_that_are_typed_in_travel_by_value() -> None:
    code = INTERACTIVE.replace("target=print, args=(method,)", "target=lambda: print(method)")
    assert run("-c", code.replace("print(method)", "print(5)")).stdout == "5\n5\n"


def test_a_main_module_that_raises_when_it_is_imported_again(tmp_path: Path) -> None:
    source = """
        import billiard
        if __name__ == "__mp_main__":
            raise ZeroDivisionError("when imported again")
        if __name__ == "__main__":
            process = billiard.get_context("spawn").Process(target=print)
            process.start()
            process.join()
            print(process.exitcode)
    """
    done = run_file(tmp_path, source)
    assert done.stdout == "1\n"
    assert done.stderr.splitlines()[-1] == "ZeroDivisionError: when imported again"


def test_a_main_module_that_starts_processes_without_a_guard(tmp_path: Path) -> None:
    source = """
        import billiard
        process = billiard.get_context("spawn").Process(target=print)
        process.start()
        process.join()
        print(process.exitcode)
    """
    done = run_file(tmp_path, source)
    assert done.stdout == "1\n"
    assert "RuntimeError: A process was started while this one" in done.stderr
    assert "if __name__ == '__main__':" in done.stderr


def test_a_compiled_main_module(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    compiled = tmp_path / "compiled.pyc"
    py_compile.compile(str(tmp_path / "program.py"), str(compiled), doraise=True)
    done = run(compiled)
    # What a function changes is not seen in `__main__`: runpy gives that a copy.
    assert done.stdout.startswith("__mp_main__ __mp_main__ True True\n"), done.stderr


def test_the_main_module_is_compiled_once_and_again_when_it_changes(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("value = 1")
    first = spawn._main_code(str(script))
    assert first is not None
    assert first[:2] == (sys.version, sys.flags.optimize)
    assert spawn._main_code(str(script)) is first
    script.write_text("value = 11")
    second = spawn._main_code(str(script))
    assert second is not None
    assert second != first
    found: dict[str, int] = {}
    exec(marshal.loads(second[2]), found)
    assert found["value"] == 11
    script.write_text("1 + ")
    assert spawn._main_code(str(script)) is None
    assert spawn._main_code(str(tmp_path / "none.py")) is None


def test_code_of_another_interpreter_is_not_used(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import sys; sys.argv.append('from the file')")
    data = {"init_main_from_path": str(script), "main_code": ("another", 0, b"not for us")}
    code = f"import billiard.spawn, sys; billiard.spawn.prepare({data!r}); print(sys.argv[-1])"
    assert run("-c", code).stdout == "from the file\n"


def test_import_main_path(tmp_path: Path) -> None:
    source = """
        import sys, billiard.spawn
        path = sys.argv[1]
        old = sys.modules["__main__"]
        billiard.spawn.import_main_path(path)
        main = sys.modules["__main__"]
        assert main is sys.modules["__mp_main__"] is not old
        assert billiard.spawn.old_main_modules == [old]
        assert (main.__name__, main.__file__, main.argv0) == ("__mp_main__", path, path)
        assert sys.argv[0] != path
        billiard.spawn.import_main_path(path)
        assert sys.modules["__main__"] is main
    """
    other = tmp_path / "other.py"
    other.write_text("import sys; argv0 = sys.argv[0]; assert sys.modules[__name__]")
    run_file(tmp_path, source, str(other))


# ---- the preparation data ----


def test_preparation_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", ["", "/somewhere"])
    data = spawn.get_preparation_data("child")
    assert data["name"] == "child"
    assert data["authkey"] == billiard.current_process().authkey
    assert data["sys_path"] == [process.ORIGINAL_DIR, "/somewhere"]
    assert data["sys_argv"] is sys.argv
    assert (data["orig_dir"], data["dir"]) == (process.ORIGINAL_DIR, os.getcwd())
    assert data["start_method"] == billiard.get_start_method()
    assert data["log_to_stderr"] is False
    assert ("init_main_from_name" in data) != ("init_main_from_path" in data)


def test_what_the_parent_is_like_its_child_is(tmp_path: Path) -> None:
    source = """
        import os, sys, billiard, billiard.process
        def target(expected):
            assert expected == (sys.path, sys.argv, os.getcwd(), billiard.process.ORIGINAL_DIR), 1
            assert os.environ["MP_MAIN_FILE"] == sys.modules["__main__"].__file__
            print("same")
        if __name__ == "__main__":
            original = os.getcwd()
            for method in ("spawn", "forkserver"):
                sys.path.append("/made/up")
                sys.argv.append("made up")
                os.chdir("/")
                process = billiard.get_context(method).Process(
                    target=target, args=((sys.path, sys.argv, "/", original),))
                process.start()
                process.join()
    """
    assert run_file(tmp_path, source).stdout == "same\nsame\n"


def test_logging_is_set_up_as_in_the_parent(tmp_path: Path) -> None:
    source = """
        import sys, billiard, billiard.util
        def target():
            billiard.util.info("said by %s", "the child")
        if __name__ == "__main__":
            billiard.log_to_stderr("INFO")
            process = billiard.get_context("spawn").Process(target=target, name="child")
            process.start()
            process.join()
    """
    assert "[INFO/child] said by the child\n" in run_file(tmp_path, source).stderr


def test_logging_is_set_up_from_what_celery_leaves_in_the_environment(tmp_path: Path) -> None:
    source = """
        import billiard, billiard.util
        def target():
            logger = billiard.util.get_logger()
            assert logger.level == 10 and logger._rudimentary_setup
            billiard.util.debug("message")
        if __name__ == "__main__":
            process = billiard.get_context("spawn").Process(target=target)
            process.start()
            process.join()
            assert process.exitcode == 0
    """
    log = tmp_path / "log"
    names = {"LEVEL": "10", "FILE": str(log), "FORMAT": "%(levelname)s:%(message)s"}
    run_file(tmp_path, source, **{f"_MP_FORK_LOG{name}_": value for name, value in names.items()})
    assert "DEBUG:message\n" in log.read_text()


def test_the_directory_above_an_old_django_project_is_on_the_path(tmp_path: Path) -> None:
    source = """
        import os, sys, billiard
        def target():
            folder = os.environ["DJANGO_PROJECT_DIR"]
            print(sys.path.count(folder), folder)
        if __name__ == "__main__":
            process = billiard.get_context("spawn").Process(target=target)
            process.start()
            process.join()
    """
    project = tmp_path / "apps" / "project"
    project.mkdir(parents=True)
    (project / "__init__.py").write_text("")
    path = f"{ROOT}{os.pathsep}{tmp_path}/apps"
    done = run_file(tmp_path, source, PYTHONPATH=path, DJANGO_SETTINGS_MODULE="project.settings")
    count, folder = done.stdout.split()
    # The preparation data replace the path that the child started with.
    assert (count, folder) == ("1", str(tmp_path / "apps"))


# ---- descriptors ----


def open_descriptors(conn: Connection) -> None:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd > 2 and fd != sys.stdin.fileno():
            with contextlib.suppress(OSError):  # the listing's own
                found[fd] = bool(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC)
    conn.send((found, conn.fileno()))
    conn.close()


def test_a_child_has_the_descriptors_that_it_needs_and_no_others() -> None:
    leaky = os.dup(0)
    os.set_inheritable(leaky, True)
    ours, its = billiard.Pipe()
    child = SPAWN.Process(target=open_descriptors, args=(its,))
    child.start()
    number = its.fileno()
    its.close()
    with ours:
        found, mine = ours.recv()
    child.join()
    os.close(leaky)
    trackers = [spawn._tracker_fd(name) for name in ("resource_tracker", "semaphore_tracker")]
    # Its own programs get none of them.
    assert mine == number
    assert found == {fd: True for fd in (number, *trackers) if fd is not None}


def test_messages_of_any_size(ctx: Any) -> None:
    child = ctx.Process(target=len, args=(b"x" * 20_000_000,))
    child.start()
    child.join()
    assert child.exitcode == 0


# ---- errors ----


@pytest.fixture
def executable() -> Any:
    before = spawn.get_executable()
    yield billiard.set_executable
    billiard.set_executable(before)


def test_an_executable_that_is_not_there(executable: Any) -> None:
    executable("/no/such/python")
    child = SPAWN.Process(target=nothing)
    with pytest.raises(FileNotFoundError) as caught:
        child.start()
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, "/no/such/python")
    assert (child.pid, child.exitcode) == (None, None)


def test_an_executable_that_may_not_be_run(executable: Any, tmp_path: Path) -> None:
    (tmp_path / "python").write_text("")
    executable(tmp_path / "python")
    with pytest.raises(PermissionError) as caught:
        SPAWN.Process(target=nothing).start()
    assert caught.value.errno == errno.EACCES


def test_an_executable_that_is_not_python(executable: Any) -> None:
    executable(b"/bin/false")
    child = SPAWN.Process(target=nothing)
    child.start()
    child.join()
    assert child.exitcode == 1


def test_an_environment_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUGE", "x" * 200_000)
    child = SPAWN.Process(target=nothing)
    with pytest.raises(OSError) as caught:
        child.start()
    assert caught.value.errno == errno.E2BIG
    assert child.exitcode is None


def test_the_environment_says_that_there_was_no_fork() -> None:
    child = SPAWN.Process(target=nothing)
    child.start()
    child.join()
    assert os.environ["MULTIPROCESSING_FORKING_DISABLE"] == "1"


def test_a_parent_that_dies_early_leaves_a_child_that_ends(tmp_path: Path) -> None:
    """The message is all there before the child starts: nobody has to live to write it."""
    source = """
        import os, billiard
        def target(data):
            print(len(data), flush=True)
        if __name__ == "__main__":
            billiard.get_context("spawn").Process(target=target, args=(b"x" * 1_000_000,)).start()
            os._exit(0)
    """
    script = tmp_path / "program.py"
    script.write_text("\n".join(line[8:] for line in source.splitlines()))
    with subprocess.Popen(
        [sys.executable, script], env=environment(), stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.communicate(timeout=60)[0] == "1000000\n"
