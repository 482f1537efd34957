"""Start method `spawn`: a new interpreter.

```
 parent                                                     child
 pickle the process object, then the preparation data       python -c 'from billiard.spawn ...'
   │  (duplicate_for_child notes the descriptors)
 one message in memory that has no name ──inherited as──►  read the message: prepare, unpickle,
 _core.spawn(exactly these descriptors)      pipe_handle    _bootstrap, exit
```
"""

from __future__ import annotations

import os
import sys

from . import _core, popen_fork, spawn
from .compat import spawnv_passfds as spawnv_passfds
from .spawn import _DupFd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .process import BaseProcess

__all__ = ["Popen"]


class Popen(popen_fork.Popen):
    """A started process, in a new interpreter (origin: multiprocessing)."""

    method = "spawn"
    DupFd = _DupFd

    def __init__(self, process_obj: BaseProcess) -> None:
        self._fds: list[int] = []
        super().__init__(process_obj)

    def duplicate_for_child(self, fd: int) -> int:
        """Have `fd` in the child under the same number."""
        self._fds.append(fd)
        return fd

    def _launch(self, process_obj: BaseProcess) -> None:
        os.environ["MULTIPROCESSING_FORKING_DISABLE"] = "1"
        spawn._Django_old_layout_hack__save()
        message = spawn._message(self, process_obj)
        handle = _core.memory_file(message)
        try:
            spares = sys.modules.get("billiard._spares")
            spare = None if spares is None else spares.take(handle, self._fds)
            if spare is not None:
                self._adopt(spare)
                return
            command = spawn.get_command_line(pipe_handle=handle)
            self._adopt(
                _core.spawn(
                    os.fsencode(spawn.get_executable()),
                    [os.fsencode(word) for word in command],
                    [*self._fds, handle],
                )
            )
        finally:
            os.close(handle)
