#!/usr/bin/env python3
"""Read every Python file that this interpreter has, five ways, and compare the results.

The corpus is real: the standard library and the site-packages directory, some thousands of files.
Each file is parsed with `ast` and measured. That is done one after the other, with
`Pool.imap_unordered` under each start method, and with `Process` and `Queue` by hand. The five
results have to be equal; the exit status says whether they are.

    python examples/corpus.py [--limit FILES] [--processes N] [--csv FILE]
"""

from __future__ import annotations

import argparse
import ast
import csv
import os
import queue
import site
import sys
import sysconfig
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import billiard

#: files that travel together: one message for each file would measure the messages
CHUNK = 16
#: seconds without a result before the processes of the hand-made way are looked at
PATIENCE = 1.0

Progress = Callable[[int], object]


# --- one file ----------------------------------------------------------------------------------


@dataclass(frozen=True, order=True)
class Function:
    """A function's length in lines, and where it is."""

    lines: int
    path: str
    line: int
    name: str

    def __str__(self) -> str:
        return f"{self.name}, {self.lines:,} lines ({self.path}:{self.line})"


@dataclass(frozen=True)
class FileFigures:
    """What was measured in one file; `error` is set, and the rest empty, if it does not parse."""

    path: str
    lines: int = 0
    functions: int = 0
    classes: int = 0
    imports: tuple[tuple[str, int], ...] = ()
    longest: Function | None = None
    error: str | None = None


def measure(path: str) -> FileFigures:
    """Parse the file at `path` and count. A file that does not parse is a result, not an error."""
    source = Path(path).read_bytes()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old files have invalid escapes; not our subject
            tree = ast.parse(source, path)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as exc:
        return FileFigures(path, error=one_line(exc))
    functions = classes = 0
    imports: Counter[str] = Counter()
    longest: Function | None = None
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                functions += 1
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                this = Function(length, path, node.lineno, node.name)
                longest = this if longest is None else max(longest, this)
            case ast.ClassDef():
                classes += 1
            case ast.Import():
                imports.update(alias.name.partition(".")[0] for alias in node.names)
            case ast.ImportFrom(module=str(module), level=0):
                imports[module.partition(".")[0]] += 1
    lines = len(source.splitlines())
    return FileFigures(path, lines, functions, classes, tuple(sorted(imports.items())), longest)


def one_line(exc: BaseException) -> str:
    """The error without the parts that name the file again or repeat the source."""
    if isinstance(exc, SyntaxError):
        where = f" (line {exc.lineno})" if exc.lineno else ""
        return f"{type(exc).__name__}: {exc.msg}{where}"
    return f"{type(exc).__name__}: {exc}"


# --- all files ---------------------------------------------------------------------------------


@dataclass
class Totals:
    """The sum over all files."""

    files: int = 0
    lines: int = 0
    functions: int = 0
    classes: int = 0
    imports: Counter[str] = field(default_factory=Counter)
    longest: Function | None = None
    unparsed: list[FileFigures] = field(default_factory=list)

    @classmethod
    def of(cls, figures: Iterable[FileFigures]) -> Totals:
        totals = cls()
        for one in figures:
            totals.files += 1
            totals.lines += one.lines
            totals.functions += one.functions
            totals.classes += one.classes
            totals.imports.update(dict(one.imports))
            if one.longest is not None:
                totals.longest = max(totals.longest or one.longest, one.longest)
            if one.error is not None:
                totals.unparsed.append(one)
        return totals

    def ranked_imports(self) -> list[tuple[str, int]]:
        """Most used first; equal counts by name, so that the order is the same every time."""
        return sorted(self.imports.items(), key=lambda item: (-item[1], item[0]))


def corpus() -> list[str]:
    """Every .py file of the standard library and of site-packages, sorted, each once."""
    paths = sysconfig.get_paths()
    standard = {paths["stdlib"], paths["platstdlib"]}
    packages = {paths["purelib"], paths["platlib"], *site.getsitepackages()}
    found: set[str] = set()
    for top in standard | packages:
        for folder, folders, names in os.walk(top):
            if top in standard:  # what is installed beside it belongs to site-packages, if to us
                folders[:] = [n for n in folders if n not in ("site-packages", "dist-packages")]
            found.update(os.path.realpath(os.path.join(folder, n)) for n in names if is_source(n))
    return sorted(path for path in found if os.path.isfile(path))


def is_source(name: str) -> bool:
    return name.endswith(".py")


# --- the five ways -----------------------------------------------------------------------------


def serially(paths: Sequence[str], processes: int, progress: Progress) -> list[FileFigures]:
    """One file after the other in this process."""
    return collect(map(measure, paths), progress)


def with_pool(method: str) -> Callable[[Sequence[str], int, Progress], list[FileFigures]]:
    """`Pool.imap_unordered` under the given start method."""

    def run(paths: Sequence[str], processes: int, progress: Progress) -> list[FileFigures]:
        pool = billiard.get_context(method).Pool(processes)
        try:
            figures = collect(pool.imap_unordered(measure, paths, chunksize=CHUNK), progress)
            pool.close()
        except BaseException:
            pool.terminate()
            raise
        finally:
            pool.join()
        return figures

    return run


def collect(results: Iterable[FileFigures], progress: Progress) -> list[FileFigures]:
    figures = []
    for one in results:
        figures.append(one)
        progress(1)
    return figures


def with_processes(paths: Sequence[str], processes: int, progress: Progress) -> list[FileFigures]:
    """`Process` and `Queue` by hand: tasks in one queue, results in another."""
    tasks = billiard.Queue()
    results = billiard.Queue()
    workers = [billiard.Process(target=work, args=(tasks, results)) for _ in range(processes)]
    for worker in workers:
        worker.start()
    try:
        for chunk in chunks(paths):
            tasks.put(chunk)
        for _ in workers:
            tasks.put(None)
        figures: list[FileFigures] = []
        while len(figures) < len(paths):
            try:
                chunk = results.get(timeout=PATIENCE)
            except queue.Empty:
                if broken := [worker for worker in workers if worker.exitcode]:
                    raise RuntimeError(f"a process died: {broken}") from None
                continue
            figures += chunk
            progress(len(chunk))
    except BaseException:
        for worker in workers:
            worker.terminate()
        tasks.cancel_join_thread()
        raise
    finally:
        for worker in workers:
            worker.join()
        for each in (tasks, results):
            each.close()
            each.join_thread()
    return figures


def work(tasks: billiard.queues.Queue, results: billiard.queues.Queue) -> None:
    """What each process of `with_processes` does until it is told that there is no more."""
    while (chunk := tasks.get()) is not None:
        results.put([measure(path) for path in chunk])


def chunks(paths: Sequence[str]) -> Iterator[list[str]]:
    for start in range(0, len(paths), CHUNK):
        yield list(paths[start : start + CHUNK])


WAYS: dict[str, Callable[[Sequence[str], int, Progress], list[FileFigures]]] = {
    "serial": serially,
    "Pool, fork": with_pool("fork"),
    "Pool, spawn": with_pool("spawn"),
    "Pool, forkserver": with_pool("forkserver"),
    "Process + Queue": with_processes,
}


# --- what is printed ---------------------------------------------------------------------------


def warm_up(paths: Iterable[str]) -> int:
    """Read everything once, so that no way pays for the disk; the number of bytes."""
    return sum(len(Path(path).read_bytes()) for path in paths)


def report(totals: Totals) -> None:
    print(f"{totals.lines:,} lines, {totals.functions:,} functions, {totals.classes:,} classes")
    ranked = totals.ranked_imports()
    shown = ", ".join(f"{name} {count:,}" for name, count in ranked[:10])
    print(f"imports of {len(ranked):,} modules, most used: {shown}")
    if totals.longest is not None:
        print(f"longest function: {totals.longest}")
    print(f"{len(totals.unparsed)} files do not parse" + ":" * bool(totals.unparsed))
    for one in totals.unparsed:
        print(f"  {one.path}: {one.error}")


def write_csv(path: str, figures: Iterable[FileFigures]) -> None:
    """The figures of each file, one line a file."""
    with open(path, "w", newline="") as out:
        columns = "path lines functions classes imports longest longest_lines error"
        writer = csv.writer(out)
        writer.writerow(columns.split())
        for one in figures:
            imports = " ".join(f"{name}:{count}" for name, count in one.imports)
            longest = (one.longest.name, one.longest.lines) if one.longest else ("", "")
            counted = (one.lines, one.functions, one.classes)
            writer.writerow([one.path, *counted, imports, *longest, one.error])


def differences(expected: Sequence[FileFigures], got: Sequence[FileFigures]) -> list[str]:
    """The paths of files whose figures are not the expected ones, missing and extra ones too."""
    return sorted({one.path for one in set(expected) ^ set(got)}) or ["(a file came twice)"]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure every Python file here, five ways.")
    parser.add_argument("--limit", type=positive, metavar="FILES", help="only so many files")
    parser.add_argument(
        "--processes",
        type=positive,
        metavar="N",
        default=len(os.sched_getaffinity(0)),
        help="worker processes (default: the CPUs that this process may use, %(default)s)",
    )
    parser.add_argument("--csv", metavar="FILE", help="write the figures of each file there")
    return parser.parse_args()


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def main() -> int:
    try:
        from tqdm import tqdm
    except ImportError:
        print("the progress bar needs tqdm: pip install 'billiard[demo]'", file=sys.stderr)
        return 2
    options = arguments()
    paths = corpus()[: options.limit]
    size = warm_up(paths)
    print(f"billiard {billiard.__version__} on Python {sys.version.split()[0]}")
    print(f"{len(paths):,} files, {size / 1e6:.1f} MB, {options.processes} processes\n", flush=True)

    print(f"{'way':<18}{'seconds':>9}{'files/s':>10}{'speed-up':>10}  result", flush=True)
    expected: list[FileFigures] = []
    serial = 0.0
    equal = 0
    for way, run in WAYS.items():
        # disable=None: a bar on a terminal, nothing in a file or a pipe
        with tqdm(total=len(paths), desc=way, unit=" files", disable=None, leave=False) as bar:
            start = time.perf_counter()
            figures = run(paths, options.processes, bar.update)
            seconds = time.perf_counter() - start
        figures.sort(key=lambda one: one.path)
        if not expected:  # the first way is the serial one
            expected, serial = figures, seconds
        same = figures == expected
        equal += same
        speed = f"{len(paths) / seconds:>10,.0f}{serial / seconds:>9.2f}x"
        print(f"{way:<18}{seconds:>9.2f}{speed}  {'equal' if same else 'DIFFERENT'}", flush=True)
        if not same:
            print("  " + "\n  ".join(differences(expected, figures)[:10]), flush=True)

    print()
    report(Totals.of(expected))
    if options.csv:
        write_csv(options.csv, expected)
    print(f"\n{equal} of {len(WAYS)} results are equal")
    return 0 if equal == len(WAYS) else 1


if __name__ == "__main__":
    sys.exit(main())
