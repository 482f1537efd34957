"""Start method `spawn` on Windows: not in this package."""

raise ImportError(
    "billiard.popen_spawn_win32 is for Windows, which this package does not support; "
    "the start methods of this system are in popen_fork, popen_spawn_posix and popen_forkserver",
    name=__name__,
)
