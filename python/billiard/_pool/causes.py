"""Why a worker has died, as far as that can be known."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]

#: signals that say that the process itself has gone wrong
_CRASHES = {
    getattr(_signal, name, None): text
    for name, text in (
        ("SIGSEGV", "segmentation fault"),
        ("SIGBUS", "bus error"),
        ("SIGILL", "illegal instruction"),
        ("SIGFPE", "arithmetic fault"),
        ("SIGABRT", "it aborted"),
        ("SIGSYS", "forbidden system call"),
    )
}


class Causes:
    """Tells kills by the kernel for want of memory from others, by counters from before.

    The kernel counts its kills: of the control group that this process is in, or, where there is
    no such file, of the whole system. Process-local.
    """

    def __init__(self) -> None:
        self._kills = _out_of_memory_kills()

    def explain(self, exitcode: int | None) -> str:
        """What is known of the end of a worker with this exit code."""
        if exitcode is None:
            return "somebody else has taken its exit code"
        if exitcode >= 0:
            return f"it exited with status {exitcode} within the task"
        if -exitcode in _CRASHES:
            return _CRASHES[-exitcode]
        if exitcode == -_signal.SIGKILL:
            before, self._kills = self._kills, _out_of_memory_kills()
            if before is not None and self._kills is not None and self._kills > before:
                return "killed by the kernel, which was out of memory"
        return "ended by a signal from elsewhere"


#: the files of the kernel's counters that there may be, once somebody has asked
_files: list[str] = []


def _out_of_memory_kills() -> int | None:
    if not _files:
        _files.extend((*_group_files(), "/proc/vmstat"))
    for path in _files:
        try:
            with open(path) as file:
                for line in file:
                    name, _, value = line.partition(" ")
                    if name == "oom_kill":
                        return int(value)
        except (OSError, ValueError):
            pass
    return None


def _group_files() -> list[str]:
    """Where the counters of this process's control group are, for both versions of these."""
    files = []
    try:
        with open("/proc/self/cgroup") as file:
            for line in file:
                _, controllers, path = line.rstrip("\n").split(":", 2)
                if not controllers:
                    files.append(f"/sys/fs/cgroup{path}/memory.events")
                elif "memory" in controllers.split(","):
                    files.append(f"/sys/fs/cgroup/memory{path}/memory.oom_control")
    except (OSError, ValueError):
        pass
    return files
