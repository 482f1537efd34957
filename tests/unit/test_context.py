"""billiard.context: start methods, and contexts as factories."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
from scripts import run, run_file

import billiard
from billiard import context, exceptions, spawn
from billiard.context import BaseContext, DefaultContext, _concrete_contexts

METHODS = ["fork", "spawn", "forkserver"]


@pytest.fixture
def default() -> DefaultContext:
    """A default context of the test's own."""
    return DefaultContext(_concrete_contexts["fork"])


# ---- start methods ----


def test_start_methods_of_this_system() -> None:
    assert billiard.get_all_start_methods() == METHODS
    assert [billiard.get_context(method).get_start_method() for method in METHODS] == METHODS


def test_a_default_context_is_fixed_by_its_first_use(default: DefaultContext) -> None:
    assert default.get_start_method(allow_none=True) is None
    assert default.get_start_method() == "fork"
    assert default.get_start_method(allow_none=True) == "fork"
    with pytest.raises(RuntimeError, match="context has already been set"):
        default.set_start_method("spawn")


def test_a_start_method_is_set_once(default: DefaultContext) -> None:
    default.set_start_method("spawn")
    assert default.get_context() is _concrete_contexts["spawn"]
    with pytest.raises(RuntimeError, match="context has already been set"):
        default.set_start_method("spawn")


def test_force_changes_and_unsets_the_start_method(default: DefaultContext) -> None:
    default.set_start_method("spawn")
    default.set_start_method("forkserver", force=True)
    assert default.get_start_method() == "forkserver"
    default.set_start_method(None, force=True)
    assert default.get_start_method(allow_none=True) is None
    assert default.get_start_method() == "fork"


@pytest.mark.parametrize("method", ["", "Fork", "threads", 3, ["fork"]])
def test_a_start_method_that_does_not_exist(default: DefaultContext, method: Any) -> None:
    with pytest.raises(ValueError, match="cannot find context for"):
        billiard.get_context(method)
    with pytest.raises(ValueError, match="cannot find context for"):
        default.set_start_method(method)
    assert default.get_start_method(allow_none=True) is None


def test_concrete_contexts_do_not_change(ctx: BaseContext) -> None:
    assert ctx.get_context() is ctx
    assert ctx.get_context("spawn") is _concrete_contexts["spawn"]
    for arguments in ((), ("spawn",), (None, True)):
        with pytest.raises(ValueError, match="cannot set start method of concrete context"):
            ctx.set_start_method(*arguments)


def test_forking_enable(default: DefaultContext, monkeypatch: pytest.MonkeyPatch) -> None:
    import billiard._ext

    assert default.forking_is_enabled()
    default.forking_enable(True)
    assert default.forking_is_enabled()
    monkeypatch.setattr(billiard._ext, "supports_exec", False)
    with pytest.warns(RuntimeWarning, match="force_execv is not supported"):
        default.forking_enable(False)
    assert default.forking_is_enabled()
    monkeypatch.setattr(billiard._ext, "supports_exec", True)
    default.forking_enable(False)
    assert default.get_start_method() == "spawn"
    assert not default.forking_is_enabled()
    assert _concrete_contexts["fork"].forking_is_enabled()
    assert not _concrete_contexts["spawn"].forking_is_enabled()


def test_the_process_of_the_default_context_follows_it(tmp_path: Path) -> None:
    source = """
        import billiard
        from billiard import Process
        from billiard.context import Process as Same
        def target(method):
            assert billiard.get_start_method() == method
        if __name__ == "__main__":
            assert Process is Same and Process._start_method is None
            for method in billiard.get_all_start_methods():
                billiard.set_start_method(method, force=True)
                process = Process(target=target, args=(method,))
                process.start()
                process.join()
                print(type(process).__name__, process._popen.method, process.exitcode)
    """
    expected = [f"Process {method} 0" for method in METHODS]
    assert run_file(tmp_path, source).stdout.splitlines() == expected


@pytest.mark.parametrize(("platform", "method"), [("darwin", "spawn"), ("linux", "fork")])
def test_default_start_methods_of_systems(platform: str, method: str) -> None:
    code = f"import sys; sys.platform = {platform!r}; import billiard"
    done = run("-c", f"{code}; print(billiard.get_start_method())")
    assert (done.stdout, done.returncode) == (method + "\n", 0), done.stderr


# ---- factories ----

OBJECTS = {
    "Lock": ("synchronize", ()),
    "RLock": ("synchronize", ()),
    "Condition": ("synchronize", ()),
    "Semaphore": ("synchronize", (2,)),
    "BoundedSemaphore": ("synchronize", (2,)),
    "Event": ("synchronize", ()),
    "Barrier": ("synchronize", (2,)),
    "SimpleQueue": ("queues", ()),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_factories_make_what_their_names_say(ctx: BaseContext, name: str) -> None:
    module, args = OBJECTS[name]
    made = getattr(ctx, name)(*args)
    assert type(made).__name__ == name
    assert type(made).__module__ == f"billiard.{module}"
    assert type(getattr(billiard, name)(*args)) is type(made)
    if name == "SimpleQueue":
        made.close()


def test_shared_ctypes_factories(ctx: BaseContext) -> None:
    assert ctx.Value("i", 7).value == 7
    assert ctx.Value("i", 7, lock=False).value == 7
    assert ctx.Array("i", [1, 2])[:] == [1, 2]
    assert ctx.Array("i", [1, 2], lock=False)[:] == [1, 2]
    assert ctx.RawValue("d", 0.5).value == 0.5
    assert ctx.RawArray("b", 3)[:] == [0, 0, 0]


def test_pipes(ctx: BaseContext) -> None:
    first, second = ctx.Pipe()
    with first, second:
        first.send(1)
        assert second.recv() == 1
    reader, writer = ctx.Pipe(duplex=False, rnonblock=True, wnonblock=True)
    with reader, writer:
        assert not os.get_blocking(reader.fileno())
        assert not os.get_blocking(writer.fileno())


def test_all_arguments_reach_the_pool(ctx: BaseContext, monkeypatch: pytest.MonkeyPatch) -> None:
    import billiard.pool

    seen: list[Any] = []
    monkeypatch.setattr(billiard.pool, "Pool", lambda *args, **kwargs: seen.append((args, kwargs)))
    arguments = tuple(range(17))
    ctx.Pool(*arguments, max_memory_per_child=5, enable_timeouts=True)
    expected = {"context": ctx, "max_memory_per_child": 5, "enable_timeouts": True}
    assert seen == [(arguments, expected)]


def test_cpu_count(ctx: BaseContext, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ctx.cpu_count() == billiard.cpu_count() == os.cpu_count()
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    with pytest.raises(NotImplementedError, match="cannot determine number of cpus"):
        ctx.cpu_count()


def test_set_executable(ctx: BaseContext) -> None:
    before = spawn.get_executable()
    try:
        ctx.set_executable("/some/python")
        assert spawn.get_executable() == "/some/python"
        with pytest.raises(TypeError):
            ctx.set_executable(3)  # type: ignore[arg-type]
        assert spawn.get_executable() == "/some/python"
    finally:
        spawn.set_executable(before)


def test_freeze_support_does_nothing_here(ctx: BaseContext) -> None:
    ctx.freeze_support()


def test_ensure_multiprocessing() -> None:
    assert billiard.ensure_multiprocessing() is None  # type: ignore[func-returns-value]


# ---- exceptions ----

SHARED = ["ProcessError", "BufferTooShort", "TimeoutError", "AuthenticationError"]


@pytest.mark.parametrize("name", SHARED)
def test_exceptions_that_are_multiprocessing_s(ctx: BaseContext, name: str) -> None:
    import multiprocessing

    theirs = getattr(multiprocessing, name)
    for place in (billiard, context, exceptions, billiard.connection, ctx, BaseContext):
        if hasattr(place, name):
            assert getattr(place, name) is theirs
    assert name in billiard.__all__


@pytest.mark.parametrize("name", ["TimeLimitExceeded", "SoftTimeLimitExceeded", "WorkerLostError"])
def test_exceptions_of_our_own(ctx: BaseContext, name: str) -> None:
    kind = getattr(exceptions, name)
    assert getattr(ctx, name) is getattr(billiard, name) is kind
    assert kind.__mro__[1] is Exception
    again = pickle.loads(pickle.dumps(kind(1, "x")))
    assert type(again) is kind
    assert again.args == (1, "x")


def test_texts_of_time_limits() -> None:
    assert str(exceptions.TimeLimitExceeded(3)) == "TimeLimitExceeded(3,)"
    assert str(exceptions.SoftTimeLimitExceeded()) == "SoftTimeLimitExceeded()"


def test_modules_have_no_other_late_names() -> None:
    for module in (billiard, context, exceptions):
        with pytest.raises(AttributeError, match=f"module '{module.__name__}' has no attribute"):
            _ = module.NoSuchName


# ---- spawning ----


def test_assert_spawning() -> None:
    assert context.get_spawning_popen() is None
    with pytest.raises(RuntimeError, match="int objects should only be shared between processes"):
        context.assert_spawning(3)
    popen: Any = object()
    context.set_spawning_popen(popen)
    try:
        assert context.get_spawning_popen() is popen
        context.assert_spawning(3)
    finally:
        context.set_spawning_popen(None)


def test_the_import_is_cheap() -> None:
    """What billiard imports must not bring in what is dear to import."""
    dear = (
        "multiprocessing logging socket tempfile re subprocess ctypes inspect typing signal pickle"
    )
    code = f"import sys; before = set(sys.modules); import billiard; print(sorted(\
            (set(sys.modules) - before) & set({dear.split()!r})))"
    done = run("-S", "-c", code)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr
    assert sys.modules["billiard"] is billiard
