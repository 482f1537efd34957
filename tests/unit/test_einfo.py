"""billiard.einfo: exceptions and tracebacks that travel."""

from __future__ import annotations

import inspect
import logging
import pickle
import sys
import traceback
import types
from typing import Any

import pytest

from billiard import einfo
from billiard.einfo import (
    ExceptionInfo,
    ExceptionWithTraceback,
    RemoteTraceback,
    Traceback,
    rebuild_exc,
)


def boom(depth: int = 0) -> None:
    if depth:
        boom(depth - 1)
    __traceback_hide__ = "by the formatter"
    raise KeyError("lost", 17)


def caught(depth: int = 0) -> ExceptionInfo:
    try:
        boom(depth)
    except KeyError:
        return ExceptionInfo()
    raise AssertionError


def travelled(obj: Any) -> Any:
    return pickle.loads(pickle.dumps(obj))


def test_it_describes_the_exception_being_handled() -> None:
    info = caught()
    assert info.type is KeyError
    assert not info.internal
    assert info.traceback.endswith("KeyError: ('lost', 17)\n")
    assert str(info) == info.traceback
    assert repr(info).startswith("<ExceptionInfo: ")
    assert info.exc_info == (info.type, info.exception, info.tb)


def test_it_describes_a_given_exception() -> None:
    try:
        boom()
    except KeyError as exc:
        error = exc
    info = ExceptionInfo((KeyError, error, error.__traceback__), internal=True)
    assert info.internal
    assert info.exception.exc is error


def test_an_exception_without_a_traceback_is_described() -> None:
    info = ExceptionInfo((ValueError, ValueError("never raised"), None))
    assert info.tb is None
    assert info.traceback == "ValueError: never raised\n"
    assert travelled(info).exception.args == ("never raised",)


def test_in_its_own_process_the_exception_is_wrapped() -> None:
    info = caught()
    assert type(info.exception) is ExceptionWithTraceback
    assert info.exception.args == ()
    assert info.exception.exc.args == ("lost", 17)
    assert str(info.exception) == f'\n"""\n{info.traceback}"""'


def test_after_the_journey_it_is_the_exception_with_the_traceback_as_cause() -> None:
    info = caught()
    there = travelled(info)
    assert type(there.exception) is KeyError
    assert there.exception.args == ("lost", 17)
    assert type(there.exception.__cause__) is RemoteTraceback
    assert str(there.exception.__cause__) == str(info.exception)
    assert there.type is KeyError
    assert there.traceback == info.traceback


def test_logging_shows_the_remote_traceback(caplog: pytest.LogCaptureFixture) -> None:
    for exception in (caught().exception, travelled(caught().exception)):
        caplog.clear()
        logging.getLogger("t").error("failed", exc_info=exception)
        assert "in boom" in caplog.text


def test_rebuild_exc_sets_the_cause() -> None:
    error = OSError(5, "no")
    assert rebuild_exc(error, "the text") is error
    assert str(error.__cause__) == "the text"


def test_the_stand_ins_pass_for_the_real_things() -> None:
    for tb in (caught(2).tb, travelled(caught(2).tb)):
        assert isinstance(tb, types.TracebackType) and type(tb) is Traceback
        assert isinstance(tb.tb_frame, types.FrameType)
        assert isinstance(tb.tb_frame.f_code, types.CodeType)
        assert inspect.istraceback(tb) and inspect.isframe(tb.tb_frame)
        assert inspect.iscode(tb.tb_frame.f_code)
        frames = inspect.getinnerframes(tb)
        assert [f.function for f in frames] == ["caught", "boom", "boom", "boom"]


def test_the_stand_ins_format_like_the_real_traceback() -> None:
    try:
        boom(2)
    except KeyError as exc:
        real, stand_in = exc.__traceback__, travelled(Traceback(exc.__traceback__))  # type: ignore[arg-type]
    assert traceback.format_tb(stand_in) == traceback.format_tb(real)


def test_frames_keep_only_what_formatters_look_at() -> None:
    tb = caught().tb
    assert tb.tb_frame.f_locals == {}
    assert tb.tb_next.tb_frame.f_locals == {"__traceback_hide__": "by the formatter"}
    assert set(tb.tb_frame.f_globals) == {"__file__", "__name__", "__loader__"}
    assert tb.tb_frame.f_globals["__name__"] == __name__
    assert tb.tb_frame.f_back is None and tb.tb_frame.f_builtins == {}


def test_code_objects_say_where_every_instruction_is() -> None:
    code = boom.__code__
    stand_in = travelled(einfo._Code(code))
    assert list(stand_in.co_positions()) == list(code.co_positions())
    assert stand_in.co_qualname == "boom"
    assert stand_in.co_varnames == stand_in.co_freevars == stand_in.co_cellvars == ()


def test_long_tracebacks_are_cut() -> None:
    try:
        boom(30)
    except KeyError as exc:
        tb = travelled(Traceback(exc.__traceback__, max_frames=3))  # type: ignore[arg-type]
    names = []
    while tb is not None:
        names.append(tb.tb_frame.f_code.co_name)
        assert list(tb.tb_frame.co_positions())
        tb = tb.tb_next
    assert names == ["test_long_tracebacks_are_cut"] + 4 * ["boom"] + [
        "[rest of traceback truncated]"
    ]


def test_a_traceback_as_deep_as_the_interpreter_allows_travels() -> None:
    def forever() -> None:
        forever()

    try:
        forever()
    except RecursionError:
        info = ExceptionInfo()
    there = travelled(info)
    assert type(there.exception) is RecursionError
    length, tb = 0, there.tb
    while tb is not None:
        length, tb = length + 1, tb.tb_next
    assert length == sys.getrecursionlimit() // 8 + 3


def test_objects_have_default_positions() -> None:
    thing = einfo._Object(a=1)
    assert thing.a == 1  # type: ignore[attr-defined]
    assert list(thing.co_positions()) == [(None, None, None, None)]
    thing.co_positions = ((1, 2, 3, 4),)  # type: ignore[method-assign, assignment]
    assert list(thing.co_positions()) == [(1, 2, 3, 4)]
