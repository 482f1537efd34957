#!/usr/bin/env python3
"""Side by side with billiard 4.3.2 and multiprocessing: a little of everything.

    python benches/compare.py [CASE ...] [--all] [--reference PYTHON] [--rounds 3] [--scale 0.5]

CASE is a name or its beginning: `pool`, `ipc`, `start`. The reference is an interpreter that has
billiard 4.3.2; without one, an environment is made in .venv-ref. The figure in parentheses says how
many times better than the reference.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import ipc as ipc  # the cases of these two are measured, too
import pool as pool
from _ruler import amount, case, main, middle, timed

# --- what children and workers run -------------------------------------------------------------


def nothing() -> None:
    pass


# --- starting ----------------------------------------------------------------------------------


def start_and_join(mp: Any, method: str, number: int) -> float:
    """Milliseconds for one process after the other that does nothing."""
    context = mp.get_context(method)

    def one() -> None:
        child = context.Process(target=nothing)
        child.start()
        child.join()

    one()  # the fork server starts with the first
    return middle([timed(one) for _ in range(number)]) * 1e3


@case("ms", "low")
def start_fork(mp: Any, scale: float) -> float:
    return start_and_join(mp, "fork", amount(60, scale))


@case("ms", "low")
def start_spawn(mp: Any, scale: float) -> float:
    return start_and_join(mp, "spawn", amount(16, scale))


@case("ms", "low")
def start_forkserver(mp: Any, scale: float) -> float:
    return start_and_join(mp, "forkserver", amount(40, scale))


@case("ms", "low")
def start_import(mp: Any, scale: float) -> float:
    """What the imports cost over an interpreter that does nothing."""
    name = mp.__name__
    modules = f"import {name}, {name}.pool, {name}.managers, {name}.queues"

    def run(code: str) -> float:
        return timed(lambda: subprocess.run([sys.executable, "-c", code], check=True))

    return middle([run(modules) - run("pass") for _ in range(7)]) * 1e3


if __name__ == "__main__":
    sys.exit(main(__file__, "multiprocessing"))
