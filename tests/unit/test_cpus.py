"""How many workers a pool has that was not told: the CPUs which the process may really use."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from scripts import run_file

import billiard
from billiard import _cpus
from billiard._cpus import usable_cpus

V2 = "30 23 0:26 {root} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "33 31 0:30 {root} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"


class Machine:
    """A tree of files like those that the kernel shows."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, path: str, text: str) -> None:
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def process(self, groups: str, mounts: str) -> None:
        self.write("/proc/self/cgroup", groups)
        self.write("/proc/self/mountinfo", "22 1 8:1 / / rw - ext4 /dev/root rw\n" + mounts)

    def quotas(self) -> list[tuple[int, int]]:
        return list(_cpus._quotas(f"{self.root}/"))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_version_2_the_group_and_those_above_it(machine: Machine) -> None:
    machine.process("0::/app.slice/web\n", V2.format(root="/"))
    machine.write("/sys/fs/cgroup/app.slice/web/cpu.max", "max 100000\n")
    machine.write("/sys/fs/cgroup/app.slice/cpu.max", "150000 100000\n")
    assert machine.quotas() == [(150000, 100000)]
    machine.write("/sys/fs/cgroup/app.slice/web/cpu.max", "50000 100000\n")
    assert machine.quotas() == [(50000, 100000), (150000, 100000)]


def test_version_1_has_a_hierarchy_for_each_controller(machine: Machine) -> None:
    groups = "5:memory:/elsewhere\n3:cpu,cpuacct:/docker/4711\n0::/\n"
    machine.process(groups, V1.format(root="/") + V2.format(root="/"))
    folder = "/sys/fs/cgroup/cpu,cpuacct/docker/4711"
    machine.write(f"{folder}/cpu.cfs_quota_us", "-1\n")
    machine.write(f"{folder}/cpu.cfs_period_us", "100000\n")
    assert machine.quotas() == []
    machine.write(f"{folder}/cpu.cfs_quota_us", "250000\n")
    assert machine.quotas() == [(250000, 100000)]


@pytest.mark.parametrize(
    ("group", "mounted"),
    [
        ("/docker/4711", "/docker/4711"),  # the container sees its own group as the root
        ("/", "/"),  # a group namespace
        ("/../other", "/"),  # moved out of sight
        ("/docker/4712", "/docker/4711"),
    ],
)
def test_inside_a_container_the_mount_is_the_group(
    machine: Machine, group: str, mounted: str
) -> None:
    machine.process(f"0::{group}\n", V2.format(root=mounted))
    machine.write("/sys/fs/cgroup/cpu.max", "200000 100000\n")
    assert machine.quotas() == [(200000, 100000)]


@pytest.mark.parametrize("text", ["", "max\n", "many 100000\n", "0 100000\n", "100000 0\n"])
def test_what_is_no_quota(machine: Machine, text: str) -> None:
    machine.process("0::/\n", V2.format(root="/"))
    machine.write("/sys/fs/cgroup/cpu.max", text)
    assert machine.quotas() == []


def test_without_proc_there_are_no_quotas(machine: Machine) -> None:
    assert machine.quotas() == []
    machine.process("nonsense\n", "- \n")
    assert machine.quotas() == []


@pytest.mark.parametrize(
    ("quotas", "count"),
    [
        ([], 8),
        ([(150000, 100000)], 2),
        ([(1000, 100000)], 1),
        ([(300000, 100000), (200000, 100000)], 2),
        ([(6400000, 100000)], 8),
    ],
)
def test_a_quota_is_rounded_up(
    monkeypatch: pytest.MonkeyPatch, quotas: list[tuple[int, int]], count: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(_cpus, "_quotas", lambda root: iter(quotas))
    assert usable_cpus(64) == count
    assert usable_cpus(1) == 1


def count_workers() -> tuple[int, int]:
    with billiard.get_context("fork").Pool() as pool, billiard.pool.ThreadPool() as threads:
        counts = len(pool._pool), len(threads._pool)
    pool.join()
    threads.join()
    return counts


def test_the_affinity_counts_for_pools_and_not_for_cpu_count() -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert count_workers() == (1, 1)
        assert billiard.cpu_count() == os.cpu_count()
    finally:
        os.sched_setaffinity(0, before)


def test_the_quota_counts_for_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cpus, "_quotas", lambda root: iter([(90000, 100000)]))
    assert count_workers() == (1, 1)


def test_a_pool_is_made_where_nobody_knows_the_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert count_workers() == (1, 1)


def test_a_pool_that_was_told_does_as_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cpus, "_quotas", lambda root: iter([(90000, 100000)]))
    with billiard.get_context("fork").Pool(3) as pool:
        assert len(pool._pool) == 3
    pool.join()


@pytest.mark.skipif(sys.version_info < (3, 13), reason="the option is new in Python 3.13")
def test_python_that_was_told_a_number_is_believed(tmp_path: Path) -> None:
    source = "from billiard.pool import Pool; print(Pool.cpu_count(None))"
    assert run_file(tmp_path, source, PYTHON_CPU_COUNT="77").stdout == "77\n"
