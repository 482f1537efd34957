"""billiard.pool: handlers of signals, set by workers, that raise at bad moments."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

from pool_tasks import PATIENCE, eventually
from scripts import environment

#: The pool's process, which is stopped while its worker has more results than there is room for.
PROGRAM = """
    import os, signal, sys, time
    import billiard

    begun = sys.argv[2]

    def interrupt(*args):
        raise LookupError("interrupted")

    def prepare():
        signal.signal(signal.SIGWINCH, interrupt)

    def result(i):
        if i == 0:
            while not os.path.exists(begun + ".go"):
                time.sleep(0.01)
        with open(begun, "ab") as file:
            file.write(b"x")
        return bytes([i]) * 30_000

    if __name__ == "__main__":
        pool = billiard.get_context(sys.argv[1]).Pool(1, prepare)
        before = pool.apply(os.getpid)
        jobs = [pool.apply_async(result, (i,)) for i in range(30)]
        print(before, flush=True)
        interrupted = 0
        for i, job in enumerate(jobs):
            try:
                assert job.get(30) == bytes([i]) * 30_000
            except billiard.pool.MaybeEncodingError as error:
                assert "interrupted" in str(error), error
                interrupted += 1
        print(interrupted, pool.apply(os.getpid) == before)
        pool.terminate()
        pool.join()
"""


def test_what_is_raised_while_a_result_waits_for_room_costs_that_result_alone(
    ctx: Any, tmp_path: Path
) -> None:
    script, begun = tmp_path / "program.py", tmp_path / "begun"
    script.write_text(textwrap.dedent(PROGRAM))
    command = [sys.executable, str(script), ctx.get_start_method(), str(begun)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        parent.send_signal(signal.SIGSTOP)
        begun.with_name("begun.go").touch()
        eventually(lambda: begun.exists() and is_asleep(worker))
        assert begun.stat().st_size < 30, "there was room for all"
        before = sleeps(worker)
        os.kill(worker, signal.SIGWINCH)
        eventually(lambda: sleeps(worker) != before and is_asleep(worker))
        parent.send_signal(signal.SIGCONT)
        assert parent.stdout.readline().split() == ["1", "True"]
        assert parent.wait(PATIENCE) == 0


def sleeps(pid: int) -> str:
    """How often a process has fallen asleep, which changes when it does something."""
    status = Path(f"/proc/{pid}/status").read_text()
    return "".join(line for line in status.splitlines() if line.startswith(("State", "voluntary")))


def is_asleep(pid: int) -> bool:
    """Whether a process sleeps until something happens."""
    before = sleeps(pid)
    time.sleep(0.3)
    return "sleeping" in before and sleeps(pid) == before
