"""What the benchmarks share: cases, fresh interpreters, interleaved rounds, medians and ratios.

A benchmark file registers cases and ends with `main`, which is told whom else to measure:

    @case("tasks/s", better="high")
    def pool_tiny(mp: Any, scale: float) -> float: ...

    if __name__ == "__main__":
        sys.exit(main(__file__, "multiprocessing"))

A case gets a module with multiprocessing's interface and returns one figure. Each figure comes from
an interpreter of its own, which runs the same file with `--one`. The implementations take turns, a
round of each after the other, so that what the machine does meanwhile hits all of them.

This file also runs on the reference's interpreter: it imports nothing but the standard library.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: what ours is compared with
REFERENCE = "billiard==4.3.2"
REFERENCE_FOLDER = Path(__file__).parent.parent / ".venv-ref"
#: what else is measured is there, too
PEERS = ("loky",)
#: seconds that one figure may take
LIMIT = 100.0
MEGABYTE = 1 << 20
now = time.perf_counter
middle = statistics.median


def timed(run: Callable[[], object]) -> float:
    """The seconds that a call takes."""
    start = now()
    run()
    return now() - start


@dataclass(frozen=True)
class Case:
    """Something to measure; `better` is "low" or "high", `slow` what is only measured on demand."""

    name: str
    unit: str
    better: str
    run: Callable[[Any, float], float]
    slow: bool = False

    def ratio(self, reference: float, figure: float) -> float:
        """How many times better than the reference, whichever way is better."""
        worse, better = (reference, figure) if self.better == "high" else (figure, reference)
        return better / worse if worse else float("inf")


CASES: dict[str, Case] = {}


def case(
    unit: str, better: str, slow: bool = False
) -> Callable[[Callable[[Any, float], float]], Callable[[Any, float], float]]:
    """Register the function below as a case of its name."""

    def register(run: Callable[[Any, float], float]) -> Callable[[Any, float], float]:
        CASES[run.__name__] = Case(run.__name__, unit, better, run, slow)
        return run

    return register


def amount(number: int, scale: float) -> int:
    """So much work, scaled, but never none."""
    return max(1, int(number * scale))


@dataclass(frozen=True)
class Implementation:
    """A module in an interpreter."""

    label: str
    python: str
    module: str

    @classmethod
    def parse(cls, text: str) -> Implementation:
        """From LABEL=PYTHON:MODULE."""
        label, _, rest = text.partition("=")
        python, _, module = rest.rpartition(":")
        if not (label and python and module):
            raise argparse.ArgumentTypeError(f"{text!r} is not LABEL=PYTHON:MODULE")
        return cls(label, python, module)


@dataclass
class Figures:
    """What one implementation has reached in one case; `failure` says why there is nothing."""

    values: list[float]
    failure: str = ""

    @property
    def median(self) -> float | None:
        return statistics.median(self.values) if self.values and not self.failure else None


def measure(file: str, what: Implementation, name: str, scale: float) -> float:
    """One figure of one case from a fresh interpreter; RuntimeError says why there is none."""
    environment = dict(os.environ)
    if what.python != sys.executable:  # whatever was added to our path is not for the others
        environment.pop("PYTHONPATH", None)
    command = [what.python, file, "--one", name, "--module", what.module, "--scale", str(scale)]
    # Files, no pipes: workers that are left behind would hold those open.
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env=environment,
            start_new_session=True,
        )
        try:
            process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"nothing after {LIMIT:.0f} s") from None
        finally:
            with contextlib.suppress(ProcessLookupError):  # and whatever it has left
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        out.seek(0)
        for line in out:
            if line.startswith("{"):
                return float(json.loads(line)["figure"])
        err.seek(0)
        complaints = err.read().splitlines()
    reasons = [line for line in complaints if line.partition(":")[0].endswith("Error")]
    raise RuntimeError((reasons or complaints or ["no output"])[-1])


def compare(
    file: str, cases: Sequence[Case], who: Sequence[Implementation], rounds: int, scale: float
) -> dict[str, dict[str, Figures]]:
    """Measure and print, a line a case; the first implementation is the one to compare with."""
    width = max(len(case.name) for case in cases)
    table = {}
    for one in cases:
        row = table[one.name] = {each.label: Figures([]) for each in who}
        for _ in range(rounds):
            for each in who:
                if not row[each.label].failure:
                    try:
                        row[each.label].values.append(measure(file, each, one.name, scale))
                    except RuntimeError as exc:
                        row[each.label].failure = str(exc)
        reference = row[who[0].label].median
        cells = [cell(one, label, figures, reference) for label, figures in row.items()]
        print(f"{one.name:<{width}}  {one.unit:<9}" + "".join(cells), flush=True)
    return table


def cell(one: Case, label: str, figures: Figures, reference: float | None) -> str:
    """ "ours 1,234 (5.6x)": the ratio says how many times better than the reference."""
    median = figures.median
    if median is None:
        return f"  {label}: {figures.failure[:60]}"
    ratio = "" if reference is None else f" ({one.ratio(reference, median):.2f}x)"
    return f"  {label} {median:,.4g}{ratio}"


def reference_interpreter() -> str:
    """The interpreter of an environment with the original in it, made when there is none."""
    python = REFERENCE_FOLDER / "bin" / "python"
    done, wanted = REFERENCE_FOLDER / ".made", [REFERENCE, "numpy", *PEERS]
    if not done.exists() or done.read_text().split() != wanted:
        print(f"making {REFERENCE_FOLDER.name} with {REFERENCE}", file=sys.stderr)
        venv.create(REFERENCE_FOLDER, clear=True, with_pip=True)
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet"]
        subprocess.run([*pip, "install", *wanted], check=True)
        done.write_text("\n".join(wanted))
    return str(python)


def positive(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError("must be greater than 0")
    return number


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare implementations in one run.")
    parser.add_argument("cases", nargs="*", help="names or beginnings of names (default: all)")
    parser.add_argument("--all", action="store_true", help="also the cases that take long")
    parser.add_argument("--list", action="store_true", help="print the cases and stop")
    parser.add_argument("--rounds", type=int, default=3, help="figures of each (default: 3)")
    parser.add_argument("--scale", type=positive, default=0.5, help="amount of work (default: 0.5)")
    parser.add_argument("--reference", metavar="PYTHON", help=f"one with {REFERENCE}")
    parser.add_argument(
        "--peer",
        type=Implementation.parse,
        action="append",
        metavar="LABEL=PYTHON:MODULE",
        help="one more to compare (default: what else does this on this interpreter)",
    )
    parser.add_argument("--json", metavar="FILE", help="write the medians there")
    parser.add_argument("--one", metavar="CASE", help=argparse.SUPPRESS)
    parser.add_argument("--module", default="billiard", help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = [n for n in options.cases if not any(c.startswith(n) for c in CASES)]
    if unknown:
        parser.error(f"no such case: {', '.join(unknown)}")
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    return options


def main(file: str, *peers: str) -> int:
    """The command line of a benchmark file; 1 if ours has no figure somewhere.

    :param peers: modules that are measured, too.
    """
    options = arguments()
    if options.one:
        module = importlib.import_module(options.module)
        print(json.dumps({"figure": CASES[options.one].run(module, options.scale)}), flush=True)
        return 0
    chosen = [
        c
        for c in CASES.values()
        if (not options.cases or c.name.startswith(tuple(options.cases)))
        and (not c.slow or options.all or c.name in options.cases)
    ]
    if options.list:
        for one in chosen:
            print(f"{one.name}: {one.unit}, {one.better} is better")
        return 0
    ours = Implementation("ours", sys.executable, "billiard")
    reference = options.reference or reference_interpreter()
    who = [
        Implementation("billiard-4.3.2", reference, "billiard"),
        ours,
        *(
            options.peer
            or [
                Implementation(peer, reference if peer in PEERS else sys.executable, peer)
                for peer in peers
            ]
        ),
    ]
    table = compare(file, chosen, who, options.rounds, options.scale)
    if options.json:
        medians = {name: {k: f.median for k, f in row.items()} for name, row in table.items()}
        Path(options.json).write_text(json.dumps(medians, indent=1) + "\n")
    failed = [name for name, row in table.items() if row[ours.label].median is None]
    if failed:
        print(f"no figure of ours: {', '.join(failed)}")
    return 1 if failed else 0
