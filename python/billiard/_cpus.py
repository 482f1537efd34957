"""How many CPUs this process may really use.

A machine's number of CPUs says little in a container: the scheduler may be told to run the process
on some of them only (affinity), or for a part of the time only (a quota of its control group or of
one above it).

```
 /proc/self/cgroup     0::/app/web          which group        (version 2: one hierarchy)
                       5:cpu,cpuacct:/app                      (version 1: one for each controller)
 /proc/self/mountinfo  ... / /sys/fs/cgroup ... - cgroup2      where its files are
 the group's folder and those above it, up to the mount:
                       cpu.max                                 "max 100000", "150000 100000"
                       cpu.cfs_quota_us, cpu.cfs_period_us     -1 and a number, or two numbers
```
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


def usable_cpus(count: int) -> int:
    """Of the `count` CPUs of the machine, those that this process may use; at least 1.

    A quota of one and a half CPUs counts as two. Who has told Python how many there are
    (`PYTHON_CPU_COUNT`, `-X cpu_count`, from 3.13 on) is believed.
    """
    told = getattr(sys, "_get_cpu_count_config", None)
    if told is not None and told() > 0:
        return count
    if hasattr(os, "sched_getaffinity"):
        count = min(count, len(os.sched_getaffinity(0)))
    for quota, period in _quotas("/"):
        count = min(count, -(-quota // period))
    return max(count, 1)


def _quotas(root: str) -> Iterator[tuple[int, int]]:
    """The (quota, period), in microseconds, of every control group that limits this process.

    `root` is in front of all paths, for tests.
    """
    try:
        with open(f"{root}proc/self/cgroup") as file:
            lines = (line.rstrip("\n").split(":", 2) for line in file)
            groups = [fields for fields in lines if len(fields) == 3]
        with open(f"{root}proc/self/mountinfo") as file:
            mounts = [line.split() for line in file]
    except (OSError, ValueError):
        return
    for mount in mounts:
        what = mount[mount.index("-") + 1 :] if "-" in mount else []
        if len(what) < 3:
            continue
        kind, _, options = what[:3]
        for number, controllers, path in groups:
            if kind == "cgroup2" and number == "0":
                names = ["cpu.max"]
            elif kind == "cgroup" and "cpu" in set(options.split(",")) & set(
                controllers.split(",")
            ):
                names = ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
            else:
                continue
            for folder in _up(path, mount[3], mount[4].replace("\\040", " ")):
                limit = _limit([f"{root}{folder.lstrip('/')}/{name}" for name in names])
                if limit is not None:
                    yield limit


def _up(path: str, mounted: str, where: str) -> Iterator[str]:
    """The folders of group `path` and of those above it, where group `mounted` is at `where`."""
    parts = [part for part in path.split("/") if part]
    above = [part for part in mounted.split("/") if part]
    # A group that is not below what is mounted is out of sight: only the mount itself can be seen.
    inside = ".." not in parts and parts[: len(above)] == above
    parts = parts[len(above) :] if inside else []
    for end in range(len(parts), -1, -1):
        yield "/".join([where, *parts[:end]])


def _limit(paths: list[str]) -> tuple[int, int] | None:
    """The quota and the period that the files hold; None if there is no limit, or no file."""
    words: list[str] = []
    try:
        for path in paths:
            with open(path) as file:
                words += file.read().split()
        quota, period = map(int, words)
    except (OSError, ValueError):
        return None  # "max"
    return (quota, period) if quota > 0 and period > 0 else None
