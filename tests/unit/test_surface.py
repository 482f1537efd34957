"""Every public name of billiard 4.3.2 is here, with the same or a wider signature.

`tests/data/surface-4.3.2.json` has the facts. Nothing may be missing; what differs is listed below,
with the reason, and is little.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import billiard
import billiard.connection
import billiard.einfo
import billiard.pool

SURFACE = json.loads((Path(__file__).parents[1] / "data" / "surface-4.3.2.json").read_text())
#: of all things that 4.3.2 has
AT_LEAST = 0.97
#: values that `repr` was cut off at this length are not compared
CUT_OFF = "..."
ADDRESS = re.compile(r" at 0x[0-9a-f]+")
CONTAINERS = {"dict", "list", "set", "tuple", "int", "float", "bool", "str", "bytes", "deque"}

#: path (a final * stands for anything) -> why it differs
DIFFERENT = {
    "billiard._ext.supports_exec": "the core can start other programs",
    "billiard.dummy.__all__": "and Barrier",
    "billiard.managers.__all__": "and SharedMemoryManager",
    "billiard.process.__all__": "and parent_process",
    "billiard.managers.Server.create": "types may have parameters called `c` and `typeid`",
    "billiard.synchronize.Condition.__exit__": "named parameters",
    "billiard.pool.*Pool._repopulate_pool": "the exit codes may be left out",
}


def is_listed(path: str) -> bool:
    from fnmatch import fnmatchcase

    return any(fnmatchcase(path, pattern) for pattern in DIFFERENT)


def parameters(thing: Any) -> list[str] | None:
    """In the notation of the data; None if the thing does not tell."""
    try:
        signature = inspect.signature(thing)
    except (TypeError, ValueError):
        return None
    marks = {"VAR_POSITIONAL": "*", "VAR_KEYWORD": "**", "KEYWORD_ONLY": "~"}
    found = []
    for parameter in signature.parameters.values():
        text = marks.get(parameter.kind.name, "") + parameter.name
        if parameter.kind.name == "POSITIONAL_ONLY" and parameter.name != "self":
            text = "/" + text
        if parameter.default is not parameter.empty:
            text += f"={ADDRESS.sub('', repr(parameter.default))}"
        found.append(text)
    return found


def accepts(old: list[str], new: list[str]) -> bool:
    """Whether every call that `old` allows means the same with `new`."""
    old_named = [text for text in old if text[0] != "*"]
    new_named = [text for text in new if text[0] != "*"]
    same = all(
        was == now or (CUT_OFF in was and was.partition("=")[0] == now.partition("=")[0])
        for was, now in zip(old_named, new_named, strict=False)
    )
    more = new_named[len(old_named) :]
    return (
        len(new_named) >= len(old_named)
        and same
        and all("=" in text for text in more)
        and {text[: text.count("*")] for text in old if text[0] == "*"}
        <= {text[: text.count("*")] for text in new if text[0] == "*"}
    )


class Report:
    def __init__(self) -> None:
        self.counted = 0
        self.missing: list[str] = []
        self.different: dict[str, str] = {}

    def compare(self, path: str, old: dict[str, Any], owner: object, name: str) -> None:
        if old["kind"] != "skip":
            self.counted += 1
        try:
            new = getattr(owner, name)
            if inspect.ismodule(owner):
                assert name in dir(owner) or name in owner.__all__, f"{path} is hidden"
        except AttributeError:
            # only on instances: a property or a slot of the class
            if not isinstance(owner, type) or not _is_declared(owner, name):
                if old["kind"] != "skip":
                    self.missing.append(path)
                return
            new = None
        if old["kind"] in ("callable", "class") and not callable(new):
            self.different[path] = f"is {new!r}, was callable"
        elif "call" in old and (now := parameters(new)) is not None:
            if not accepts(old["call"], now):
                self.different[path] = f"({', '.join(now)}), was ({', '.join(old['call'])})"
        elif "value" in old and CUT_OFF not in old["value"]:
            value = sorted(new) if name == "__all__" else new
            if repr(value) != old["value"]:
                self.different[path] = f"{value!r}, was {old['value']}"
        if "bases" in old:
            bases = {cls.__name__ for cls in new.__mro__}
            if lacking := set(old["bases"]) - bases:
                self.different[path] = f"is no {', '.join(lacking)}"
        for member, item in old.get("members", {}).items():
            self.compare(f"{path}.{member}", item, new, member)


def _is_declared(cls: type, name: str) -> bool:
    return any(
        name in vars(base) or name in vars(base).get("__slots__", ()) for base in cls.__mro__
    )


@pytest.mark.parametrize("name", SURFACE["modules"])
def test_module_has_the_names_of_4_3_2(name: str) -> None:
    module = importlib.import_module(name)
    report = Report()
    for item, old in SURFACE["modules"][name].items():
        report.compare(f"{name}.{item}", old, module, item)
    assert report.missing == []
    assert {path: text for path, text in report.different.items() if not is_listed(path)} == {}


def test_little_differs_and_only_what_is_listed_does() -> None:
    report = Report()
    for name, names in SURFACE["modules"].items():
        module = importlib.import_module(name)
        for item, old in names.items():
            report.compare(f"{name}.{item}", old, module, item)
    assert report.counted > 1400
    assert 1 - len(report.different) / report.counted >= AT_LEAST
    for pattern in DIFFERENT:
        from fnmatch import filter as matching

        assert matching(report.different, pattern), f"{pattern} does not differ any more"


@pytest.mark.parametrize("name", SURFACE["celery"])
def test_celery_can_import(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    try:
        importlib.import_module(name)
    except ImportError:
        assert hasattr(importlib.import_module(module), attribute)


# ---- living objects ----


def add(*args: int) -> int:
    return sum(args)


def living_pool() -> Iterator[tuple[str, object]]:
    pool = billiard.pool.Pool(1, timeout=60, soft_timeout=50, threads=True)
    try:
        single = pool.apply_async(add, (1,))
        single.get(20)
        yield "pool.Pool()", pool
        yield "pool.Pool().apply_async()", single
        several = pool.map_async(add, [1, 2])
        several.get(20)
        yield "pool.Pool().map_async()", several
        for name in ("imap", "imap_unordered"):
            results = getattr(pool, name)(add, [1, 2])
            assert sorted(results) == [1, 2]
            yield f"pool.Pool().{name}()", results
        parts = "_task_handler _result_handler _worker_handler _timeout_handler _inqueue _outqueue"
        for name in (*parts.split(), "_putlock", "restart_state"):
            yield f"pool.Pool().{name}", getattr(pool, name)
        yield "pool.Pool()._pool[0]", pool._pool[0]
        yield "pool.Pool()._pool[0]._popen", pool._pool[0]._popen
    finally:
        pool.terminate()
        pool.join()


def living_process() -> Iterator[tuple[str, object]]:
    process = billiard.Process(target=add)
    process.start()
    yield "Process()", process
    process.join()
    yield "current_process()", billiard.current_process()


def living_connection() -> Iterator[tuple[str, object]]:
    a, b = billiard.Pipe()
    with a, b:
        yield "Pipe()[0]", a


def living_others() -> Iterator[tuple[str, object]]:
    for name in ("Queue", "JoinableQueue", "SimpleQueue", "Lock", "RLock", "Semaphore"):
        yield f"{name}()", getattr(billiard, name)()
    for name in ("BoundedSemaphore", "Condition"):
        yield f"{name}()", getattr(billiard, name)()
    yield "Value()", billiard.Value("i", 1)
    yield "Array()", billiard.Array("i", 2)


def living_einfo() -> Iterator[tuple[str, object]]:
    try:
        raise KeyError("x")
    except KeyError:
        info = billiard.einfo.ExceptionInfo()
    yield "einfo.ExceptionInfo()", info
    yield "einfo.ExceptionInfo().tb", info.tb
    yield "einfo.ExceptionInfo().tb.tb_frame", info.tb.tb_frame
    yield "einfo.ExceptionInfo().tb.tb_frame.f_code", info.tb.tb_frame.f_code


def living_manager() -> Iterator[tuple[str, object]]:
    with billiard.Manager() as manager:
        yield "Manager()", manager


LIVING = [
    *(living_pool, living_process, living_connection, living_others),
    *(living_einfo, living_manager),
]


@pytest.mark.parametrize("living", LIVING, ids=lambda living: living.__name__)
def test_living_objects_have_the_attributes_of_4_3_2(living: Any) -> None:
    wrong = []
    with contextlib.closing(living()) as objects:
        for label, thing in objects:
            for name, kind in SURFACE["objects"].get(label, {}).items():
                if not hasattr(thing, name):
                    wrong.append(f"{label}.{name} is missing")
                elif kind in CONTAINERS and type(getattr(thing, name)).__name__ != kind:
                    wrong.append(f"{label}.{name} is {getattr(thing, name)!r}, was a {kind}")
            if hasattr(thing, "close") and label.endswith("Queue()"):
                thing.close()
    assert wrong == []


def test_every_living_object_of_the_data_is_looked_at() -> None:
    seen = set()
    for living in LIVING:
        for label, thing in living():
            seen.add(label)
            if hasattr(thing, "close") and label.endswith("Queue()"):
                thing.close()
    assert set(SURFACE["objects"]) <= seen
