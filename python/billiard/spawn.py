"""What a new interpreter does to become a child, and what its parent tells it.

Start method `spawn` runs `spawn_main` in a fresh interpreter, `forkserver` runs `_main` in a fresh
fork of its template. Both read one message: the pickled preparation data (`get_preparation_data`),
which make unpickling possible, then the pickled process object.

This module is imported by every such child before anything else: it imports as little as it can.
"""

from __future__ import annotations

import os
import sys

from . import _core, process
from . import get_start_method as get_start_method
from . import set_start_method as set_start_method

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType, ModuleType
    from typing import Any

    from . import popen_forkserver, popen_spawn_posix

__all__ = [
    "_main",
    "freeze_support",
    "get_command_line",
    "get_executable",
    "get_preparation_data",
    "import_main_path",
    "set_executable",
]

W_OLD_DJANGO_LAYOUT = (
    "Adding directory %r to the path, for projects laid out as before Django 1.4 (setup_environ). "
    "Setting the environment variable DJANGO_SETTINGS_MODULE=settings silences this."
)

_python_exe: str | bytes | os.PathLike[str] = sys.executable


# ---- Django before 1.4: the project's own directory has to be importable ----


def _module_dir(module: ModuleType) -> str:
    """Where a module is: the directory of a package, else its file."""
    file: str = module.__file__  # type: ignore[assignment]
    return os.path.dirname(file) if "__init__.py" in file else file


def _module_parent_dir(module: ModuleType) -> str:
    directory = os.path.dirname(_module_dir(module))
    return os.getcwd() if directory in ("", os.curdir) else directory


def _Django_old_layout_hack__save() -> None:
    """In the parent: leave the directory that holds the Django project in the environment."""
    if "DJANGO_PROJECT_DIR" in os.environ:
        return
    project_name, dot, _ = os.environ.get("DJANGO_SETTINGS_MODULE", "").partition(".")
    if not dot:
        return
    try:
        directory = os.path.normpath(_module_parent_dir(__import__(project_name)))
    except (AttributeError, TypeError):
        return  # made by code: it has no file
    settings: Any = sys.modules.get("django.conf.settings")
    if settings and settings.configured:
        import warnings

        text = W_OLD_DJANGO_LAYOUT % os.path.realpath(directory)
        warnings.warn(UserWarning(text), stacklevel=2)
    os.environ["DJANGO_PROJECT_DIR"] = directory


def _Django_old_layout_hack__load() -> None:
    """In the child: what the parent has left there goes on the path."""
    directory = os.environ.get("DJANGO_PROJECT_DIR")
    if directory is not None:
        sys.path.append(directory)


# ---- the command line ----


def set_executable(exe: str | bytes | os.PathLike[str]) -> None:
    """The interpreter to start, for programs that embed Python (origin: multiprocessing).

    Raises `TypeError` for what cannot be a path.
    """
    global _python_exe
    os.fspath(exe)
    _python_exe = exe


def get_executable() -> str | bytes | os.PathLike[str]:
    """The interpreter that is started for children."""
    return _python_exe


def set_spares(n: int) -> None:
    """Keep `n` interpreters ready that have started, but do nothing yet (origin: ours).

    A start by `spawn` is taken over by one of them, if executable, options, environment, working
    directory, standard streams and user are what they were when it started; it is then replaced.
    That pays where there is idle time between starts. 0, the default, ends them. Raises `TypeError`
    for what is no int, `ValueError` for less than 0, and `OSError` if they cannot be started.
    """
    if type(n) is not int:
        raise TypeError(f"the number of spare interpreters must be an int, not {n!r}")
    if n < 0:
        raise ValueError(f"the number of spare interpreters must not be negative: {n}")
    from . import _spares

    os.environ["MULTIPROCESSING_FORKING_DISABLE"] = "1"
    _Django_old_layout_hack__save()
    _spares.want("set_spares", n)


def is_forking(argv: list[str]) -> bool:
    """Whether this is the command line of a child."""
    return len(argv) >= 2 and argv[1] == "--billiard-fork"


def freeze_support() -> None:
    """Be a child, and exit, if the command line says so (origin: multiprocessing)."""
    if is_forking(sys.argv):
        arguments: dict[str, int | None] = {}
        for word in sys.argv[2:]:
            name, _, value = word.partition("=")
            arguments[name] = None if value == "None" else int(value)
        spawn_main(**arguments)  # type: ignore[arg-type]
        sys.exit()


def get_command_line(**kwds: Any) -> list[Any]:
    """The command that starts a child; `kwds` become the arguments of `spawn_main`."""
    words = [f"{name}={value!r}" for name, value in kwds.items()]
    if getattr(sys, "frozen", False):
        return [sys.executable, "--billiard-fork", *words]
    from . import util

    code = f"from billiard.spawn import spawn_main; spawn_main({', '.join(words)})"
    return [_python_exe, *util._args_from_interpreter_flags(), "-c", code, "--billiard-fork"]


# ---- in the parent ----


def _check_not_importing_main() -> None:
    if getattr(process.current_process(), "_inheriting", False):
        raise RuntimeError(
            """A process was started while this one, itself a child, was still importing the
main module. Under the start methods spawn and forkserver the main module of the program is
imported by its children too, so whatever starts processes there has to be guarded:

    if __name__ == '__main__':
        freeze_support()    # only needed in programs that are frozen into an executable
        ..."""
        )


def _main_module() -> dict[str, str]:
    """How children import the main module: by name if it was run with -m, else by path; empty if
    it was typed in."""
    main = sys.modules["__main__"]
    name = getattr(getattr(main, "__spec__", None), "name", None)
    if name is not None:
        return {"init_main_from_name": name}
    path = getattr(main, "__file__", None)
    if path is None or path == "<stdin>":
        return {}
    if process.ORIGINAL_DIR is not None:
        path = os.path.join(process.ORIGINAL_DIR, path)
    return {"init_main_from_path": os.path.normpath(path)}


#: what the compiled main module was compiled from, and for which interpreter; its code
_main_code_cache: tuple[tuple[object, ...], tuple[str, int, bytes] | None] = ((), None)


def _main_code(path: str) -> tuple[str, int, bytes] | None:
    """The main module compiled, for children that have the same interpreter; None if it cannot be.

    Nobody writes a script's bytecode to a file, so every child would have to compile it anew.
    """
    global _main_code_cache
    try:
        status = os.stat(path)
        key = (path, status.st_mtime_ns, status.st_size, status.st_ino)
        if _main_code_cache[0] != key:
            import marshal

            code = _compiled(path)
            entry = None if code is None else (*_interpreter(), marshal.dumps(code))
            _main_code_cache = key, entry
        return _main_code_cache[1]
    except (OSError, SyntaxError, ValueError):
        return None  # it is the child who says what is wrong with it


def _interpreter() -> tuple[str, int]:
    """What compiled code depends on."""
    return sys.version, sys.flags.optimize


def _is_launcher(name: str) -> bool:
    """Whether a module is the __main__.py of a package, directory or zip file: these do their work
    unconditionally, so children do not import them."""
    return name == "__main__" or name.endswith(".__main__")


def _children_import_main() -> bool:
    """Whether children find what is defined in the main module."""
    how = _main_module()
    return bool(how) and not _is_launcher(how.get("init_main_from_name", ""))


def get_preparation_data(name: str) -> dict[str, Any]:
    """What the child `name` needs to know before it can unpickle its process object.

    Raises `RuntimeError` in a child that is still importing the main module.
    """
    _check_not_importing_main()
    data: dict[str, Any] = {
        "log_to_stderr": False,
        "authkey": process.current_process().authkey,
        "name": name,
        # '' is the directory that the program was started in, wherever it is now.
        "sys_path": [process.ORIGINAL_DIR if entry == "" else entry for entry in sys.path],
        "sys_argv": sys.argv,
        "orig_dir": process.ORIGINAL_DIR,
        "dir": os.getcwd(),
        "start_method": get_start_method(),
    }
    util: Any = sys.modules.get("billiard.util")
    if util is not None:
        data["log_to_stderr"] = util._log_to_stderr
        if util._logger is not None:
            data["log_level"] = util._logger.getEffectiveLevel()

    data.update(_main_module())
    return data


def _message(
    popen: popen_spawn_posix.Popen | popen_forkserver.Popen, process_obj: process.BaseProcess
) -> bytes:
    """What `popen`'s child is to read. Fills in `popen._fds` on the way."""
    from . import _stdlib, context, reduction

    data = get_preparation_data(process_obj._name)
    context.set_spawning_popen(popen)
    _stdlib.set_spawning_popen(popen)
    try:
        process_part = reduction.ForkingPickler.dumps(process_obj)
        data["trackers"] = {
            name: reduction.DupFd(fd)
            for name in ("resource_tracker", "semaphore_tracker")
            if (fd := _tracker_fd(name)) is not None
        }
        if popen.method == "spawn":
            data["fds"] = popen._fds
            if "init_main_from_path" in data:
                data["main_code"] = _main_code(data["init_main_from_path"])
        return b"".join((reduction.ForkingPickler.dumps(data), process_part))
    finally:
        context.set_spawning_popen(None)
        _stdlib.set_spawning_popen(None)


def _tracker_fd(name: str) -> int | None:
    """What leads to the program's tracker, if this process knows of one."""
    module = sys.modules.get(f"billiard.{name}")
    fd: int | None = None if module is None else getattr(module, f"_{name}")._fd
    return fd


# ---- in the child ----


class _DupFd:
    """Stands for a descriptor in the pickle: the child has it under the same number."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def detach(self) -> int:
        """The descriptor, which is the caller's from now on."""
        return self.fd


def spawn_main(
    pipe_handle: int, parent_pid: int | None = None, tracker_fd: int | None = None
) -> None:
    """Be the child that the message behind the descriptor `pipe_handle` describes, and exit."""
    if not is_forking(sys.argv):
        raise AssertionError("not the command line of a child")
    if tracker_fd is not None:
        _use_tracker("semaphore_tracker", tracker_fd)
    _live(pipe_handle)


def spare_main(socket: int, interrupts_blocked: bool) -> None:
    """Wait for a start to take over, be that child, and exit; exit too if the parent has gone."""
    import _pickle as _pickle  # what children begin with
    import _signal  # type: ignore[import-not-found]

    interrupt = _signal.signal(_signal.SIGINT, _signal.SIG_IGN)
    if not interrupts_blocked:
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, (_signal.SIGINT,))
    message = _core.wait_for_start(socket)
    if message is None:
        os._exit(0)
    _signal.signal(_signal.SIGINT, interrupt)
    _live(message)


def _use_tracker(name: str, fd: int) -> None:
    from importlib import import_module

    getattr(import_module(f"billiard.{name}"), f"_{name}")._fd = fd


def _main(fd: int) -> int:
    """Read the message from `fd` and run its process; returns the exit status."""
    return _load(fd)._bootstrap()


def _load(fd: int) -> process.BaseProcess:
    """Read the message from `fd`: prepare this process, return its object."""
    from _pickle import load  # without `pickle`, which imports `re`

    _Django_old_layout_hack__load()
    with open(fd, "rb") as message:
        current: Any = process.current_process()
        current._inheriting = True
        try:
            prepare(load(message))
            _setup_logging_in_child_hack()
            process_obj: process.BaseProcess = load(message)
        finally:
            del current._inheriting
    return process_obj


#: how many objects a child that is importing makes before the collector looks for garbage
_UNCOLLECTED = 50_000


def _live(fd: int) -> None:
    """Be the process of the message in `fd`, in an interpreter that was started for it; exits."""
    import gc

    # Next to nothing that is made by imports is garbage: Python's own threshold would have all of
    # it looked at again and again.
    usual = gc.get_threshold()
    rare = (max(usual[0], _UNCOLLECTED) if usual[0] else 0, *usual[1:])
    gc.set_threshold(*rare)
    try:
        process_obj = _load(fd)
    finally:
        if gc.get_threshold() == rare:  # nobody has chosen another one meanwhile
            gc.set_threshold(*usual)
            if not gc.get_freeze_count():  # nobody has frozen anything, nor has the interpreter
                # All that is there counts as old now, without being looked at.
                gc.freeze()
                gc.unfreeze()
    _end(process_obj._bootstrap())


#: modules of Python's own with objects that do more at their end than Python is told of
_WITH_ENDS = {"_ctypes", "_dbm", "_gdbm", "_sqlite3"}


def _end(status: int) -> None:
    """Exit as `sys.exit(status)` does; without taking the interpreter apart if nobody can tell.

    That takes longer than most of a child's start. What it would do for a program is done here:
    functions of `atexit`, flushing of standard streams; and it is left to Python where it calls a
    finalizer, writes what an open file has buffered, or might run code of an extension module.
    """
    import atexit

    atexit._run_exitfuncs()
    try:
        if not (sys.flags.dev_mode or sys.flags.inspect) and _is_tidy():
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:
                    stream.flush()
            _core.exit(status & 0xFF)
    except Exception:
        pass  # Python knows what to print, and what to exit with
    sys.exit(status)


def _is_tidy() -> bool:
    """Whether nothing is left that anything would happen to if the interpreter was taken apart."""
    modules = sys.modules
    if not _WITH_ENDS.isdisjoint(modules):
        return False
    known = sys.stdlib_module_names
    for name, module in list(modules.items()):
        if name not in known and name.partition(".")[0] not in known and name != _core.__name__:
            # Not by its attribute, which may be one that imports something.
            file = vars(module).get("__file__")
            if file is not None and file.endswith(".so"):
                return False
    import _io
    import gc

    harmless = {_io.FileIO, _io.BufferedReader, _io.BytesIO, _io.StringIO}
    writing = {_io.TextIOWrapper, _io.BufferedWriter, _io.BufferedRandom}
    streams = [sys.stdin, sys.stdout, sys.stderr, sys.__stdin__, sys.__stdout__, sys.__stderr__]
    standard = {id(stream) for stream in streams}
    standard.update(id(getattr(stream, "buffer", None)) for stream in streams)
    for thing in _core.with_finalizers(gc.get_objects()):
        kind = type(thing)
        if kind in harmless or id(thing) in standard:
            continue
        if kind not in writing or (not thing.closed and thing.writable()):
            return False
    return True


def prepare(data: dict[str, Any]) -> None:
    """Make this process one that can unpickle its process object (origin: multiprocessing)."""
    current = process.current_process()
    for fd in data.get("fds", ()):
        # Had to be inheritable to get here; not further.
        os.set_inheritable(fd, False)
    for name, fd in data.get("trackers", {}).items():
        _use_tracker(name, fd.detach())
    if "name" in data:
        current.name = data["name"]
    if "authkey" in data:
        current.authkey = data["authkey"]
    if data.get("log_to_stderr"):
        from . import util

        util.log_to_stderr()
    if "log_level" in data:
        from . import util

        util.get_logger().setLevel(data["log_level"])
    if "sys_path" in data:
        sys.path = data["sys_path"]
    if "sys_argv" in data:
        sys.argv = data["sys_argv"]
    if "dir" in data:
        os.chdir(data["dir"])
    if "orig_dir" in data:
        process.ORIGINAL_DIR = data["orig_dir"]
    if "start_method" in data:
        # A module that the fork server has preloaded may have set one.
        set_start_method(data["start_method"], force=True)
    if "init_main_from_name" in data:
        _fixup_main_from_name(data["init_main_from_name"])
    elif "init_main_from_path" in data:
        code = data.get("main_code")
        if code is not None and code[:2] == _interpreter():
            import marshal

            _fixup_main_from_path(data["init_main_from_path"], marshal.loads(code[2]))
        else:
            _fixup_main_from_path(data["init_main_from_path"])


def _setup_logging_in_child_hack() -> None:
    """Make logging work before `Process.run`, from what Celery leaves in the environment."""
    main_file = getattr(sys.modules.get("__main__"), "__file__", None)
    if main_file is not None:
        os.environ["MP_MAIN_FILE"] = main_file
    level = os.environ.get("_MP_FORK_LOGLEVEL_")
    if not level:
        return
    import logging

    from . import util

    logger = util.get_logger()
    logger.setLevel(int(level))
    if not logger.handlers:
        logger._rudimentary_setup = True  # type: ignore[attr-defined]
        file = os.environ.get("_MP_FORK_LOGFILE_")
        handler = logging.FileHandler(file) if file else logging.StreamHandler(sys.__stderr__)
        text = os.environ.get("_MP_FORK_LOGFORMAT_") or util.DEFAULT_LOGGING_FORMAT
        handler.setFormatter(logging.Formatter(text))
        logger.addHandler(handler)


#: the `__main__` modules that were replaced, kept alive for the functions that live in them
old_main_modules: list[ModuleType] = []


def _run_as_main(module: ModuleType, code: CodeType, path: str) -> None:
    """Run the code of the main module as `__mp_main__`, and put it in `__main__`'s place."""
    argument = sys.argv[0]
    sys.modules["__mp_main__"] = module
    try:
        sys.argv[0] = path
        exec(code, module.__dict__)
    except BaseException:
        del sys.modules["__mp_main__"]
        raise
    finally:
        sys.argv[0] = argument
    old_main_modules.append(sys.modules["__main__"])
    sys.modules["__main__"] = module


def _fixup_main_from_name(mod_name: str) -> None:
    """Import the main module of `python -m mod_name` as `__mp_main__`."""
    if _is_launcher(mod_name):
        return
    current = sys.modules["__main__"]
    spec = getattr(current, "__spec__", None)
    if getattr(spec, "name", current.__name__) == mod_name:
        return  # forked: it is here already
    from importlib.util import find_spec

    spec = find_spec(mod_name)
    get_code: Any = getattr(getattr(spec, "loader", None), "get_code", None)
    code = None if get_code is None else get_code(mod_name)
    if spec is None or code is None:
        raise ImportError(f"no code of the main module {mod_name!r} is available", name=mod_name)
    path = spec.origin or "-m"
    module = type(sys)("__mp_main__")
    module.__dict__.update(
        __file__=path,
        __cached__=spec.cached,
        __loader__=spec.loader,
        __package__=spec.parent,
        __spec__=spec,
    )
    _run_as_main(module, code, path)


def _fixup_main_from_path(main_path: str, code: CodeType | None = None) -> None:
    """Import the main module of `python main_path`, which `code` is, as `__mp_main__`."""
    # IPython's launcher has no guard either.
    if os.path.splitext(os.path.basename(main_path))[0] == "ipython":
        return
    if getattr(sys.modules["__main__"], "__file__", None) == main_path:
        return  # forked: it is here already
    module = type(sys)("__mp_main__")
    code = code or _compiled(main_path)
    if code is not None:
        module.__dict__.update(
            __file__=main_path, __cached__=None, __loader__=None, __package__="", __spec__=None
        )
        _run_as_main(module, code, main_path)
        return
    import runpy  # brings `re` and `typing`

    module.__dict__.update(runpy.run_path(main_path, run_name="__mp_main__"))
    old_main_modules.append(sys.modules["__main__"])
    sys.modules["__main__"] = sys.modules["__mp_main__"] = module


def _compiled(path: str) -> CodeType | None:
    """The code of a file of source text; None for a compiled file, a directory or a zip file."""
    import io

    if os.path.isdir(path):
        return None
    with io.open_code(path) as file:
        source = file.read()
    return None if b"\0" in source else compile(source, path, "exec", dont_inherit=True)


def import_main_path(main_path: str) -> None:
    """Import the file `main_path` as the main module of this process (origin: multiprocessing)."""
    _fixup_main_from_path(main_path)
