"""The package itself: names and versions."""

from __future__ import annotations

import importlib

import pytest
from scripts import run

import billiard


def test_version() -> None:
    assert billiard.__version__.startswith("4.3.2")
    assert billiard.VERSION[:3] == (4, 3, 2)
    assert billiard.__version__ == "4.3.2" + billiard.VERSION[3]


def test_every_exported_name_is_there_and_is_the_default_context_s() -> None:
    default = billiard.context._default_context
    assert billiard.__all__ == sorted(billiard.__all__) == default.__all__  # type: ignore[attr-defined]
    for name in billiard.__all__:
        assert getattr(billiard, name) == getattr(default, name)


def test_star_import() -> None:
    code = "from billiard import *; print(Process.__name__, TimeoutError.__module__, Lock.__name__)"
    done = run("-c", code)
    assert done.stdout == "Process multiprocessing.context Lock\n", done.stderr


def test_log_levels() -> None:
    assert (billiard.SUBDEBUG, billiard.SUBWARNING) == (5, 25)


def test_the_main_module_has_a_second_name() -> None:
    done = run("-c", "import sys, billiard; print(sys.modules['__mp_main__'].__name__)")
    assert done.stdout == "__main__\n", done.stderr


def test_a_module_for_windows_says_so() -> None:
    with pytest.raises(ImportError, match="Windows"):
        importlib.import_module("billiard.popen_spawn_win32")
