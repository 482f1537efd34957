"""The workers of a pool do not outlive the process that made it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from scripts import environment

from billiard import _core
from billiard.connection import wait

PROGRAM = """
    import sys, time
    import billiard

    def sleep():
        started()
        time.sleep(60)

    def compute():
        started()
        while True:
            pass

    def hold_the_gil():
        started()
        3 ** 60_000_000

    def started():
        print(flush=True)

    if __name__ == "__main__":
        method, task = sys.argv[1:]
        pool = billiard.get_context(method).Pool(2)
        pool.map(abs, range(10))
        print(*(worker.pid for worker in pool._pool), flush=True)
        jobs = [pool.apply_async(globals()[task]) for _ in pool._pool] if task != "idle" else []
        time.sleep(600)
"""


@pytest.mark.parametrize("task", ["idle", "sleep", "compute", "hold_the_gil"])
def test_workers_die_with_a_parent_that_is_killed(ctx: Any, task: str, tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(PROGRAM))
    command = [sys.executable, str(script), ctx.get_start_method(), task]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as parent:
        assert parent.stdout is not None
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2
        sentinels = [_core.watch_process(pid, _core.process_start_time(pid)) for pid in workers]
        if task != "idle":
            for _ in workers:
                assert parent.stdout.readline() == "\n"
        parent.send_signal(signal.SIGKILL)
        alive = list(sentinels)
        while alive:
            gone = wait(alive, timeout=60)
            assert gone, f"{len(alive)} workers outlived their parent"
            alive = [fd for fd in alive if fd not in gone]
        for fd in sentinels:
            os.close(fd)
