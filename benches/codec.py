#!/usr/bin/env python3
"""What plain values cost to write and to read, beside the pickler of the standard library.

    python benches/codec.py [NAME ...] [--rounds 40]

The two take turns, a round of one after a round of the other, and the medians are compared. Both
figures have the call from Python in them, about 60 ns, which the native users of the codec do not
make: the smaller the value, the further the ratio is below theirs.
"""

from __future__ import annotations

import argparse
import gc
import pickle
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from billiard import _core

now = time.perf_counter_ns
#: nanoseconds that one round of one value should take
ROUND = 2_000_000

VALUES: dict[str, Any] = {
    "none": None,
    "int": 7,
    "int64": 1 << 60,
    "int_long": 1 << 200,
    "float": 0.5,
    "str": "hello world",
    "str_euro": "10 € " * 10,
    "bytes": b"x" * 100,
    "tuple": (1, "abc", 0.5),
    "dict": {"id": 7, "name": "n5", "tags": ["a", "b"], "x": 0.5},
    "ints": list(range(25_000)),
    "floats": [n / 2 for n in range(25_000)],
    "strs": [f"name{n}" for n in range(25_000)],
    "pairs": [(n, n / 2) for n in range(5_000)],
    "dicts": [{"id": n, "name": f"n{n}", "tags": ["a", "b"], "x": n / 2} for n in range(1_000)],
    # how long it takes to find out that this is for pickle
    "refused_at_once": object(),
    "refused_in_the_end": [*range(1_000), object],
}


def nanoseconds(call: Callable[[Any], Any], value: Any, number: int) -> float:
    numbers = range(number)
    begin = now()
    for _ in numbers:
        call(value)
    return (now() - begin) / number


def show(
    name: str,
    ours: Callable[[Any], Any],
    mine: Any,
    theirs: Callable[[Any], Any],
    other: Any,
    rounds: int,
) -> None:
    """Median nanoseconds of a call of each, in a line."""
    number = max(1, int(ROUND / nanoseconds(theirs, other, 2)))
    figures: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        figures[0].append(nanoseconds(ours, mine, number))
        figures[1].append(nanoseconds(theirs, other, number))
    one, two = map(statistics.median, figures)
    print(f"{name:<24}{one:>12,.0f}{two:>12,.0f}{two / one:>8.2f}x", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="The codec for plain values beside pickle.")
    parser.add_argument("names", nargs="*", help=f"of {', '.join(VALUES)} (default: all)")
    parser.add_argument("--rounds", type=int, default=40, help="figures of each (default: 40)")
    options = parser.parse_args()
    if unknown := set(options.names) - set(VALUES):
        parser.error(f"no such value: {', '.join(unknown)}")
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    gc.disable()  # both make the same objects, so that the collector has the same to do
    print(f"{'nanoseconds':<24}{'ours':>12}{'pickle':>12}{'ratio':>9}")
    for name in options.names or VALUES:
        value = VALUES[name]
        data, pickled = _core.plain_dumps(value), pickle.dumps(value)
        show(f"{name} write", _core.plain_dumps, value, pickle.dumps, value, options.rounds)
        if data is not None:
            show(f"{name} read", _core.plain_loads, data, pickle.loads, pickled, options.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
