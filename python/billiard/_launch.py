"""Starting several processes at once; under `process.start_all` and the pool."""

from __future__ import annotations

from . import _core, context, process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from .popen_fork import Fork, Popen
    from .process import BaseProcess


def is_plain(process_obj: BaseProcess) -> bool:
    """Whether it starts as its start method does it: nobody has put something in between."""
    return type(process_obj).start is process.BaseProcess.start


def start_all(processes: Sequence[BaseProcess], fork: Fork = _core.fork_all) -> None:
    """What `process.start_all` does; with `fork` in place of `_core.fork_all`."""
    for process_obj in processes:
        process_obj._check_startable()
    process._before_start()
    default = context._default_context.get_start_method()
    together: dict[Any, list[BaseProcess]] = {"fork": [], "forkserver": []}
    alone: list[BaseProcess] = []
    for process_obj in processes:
        method = process_obj._start_method or default
        group = together.get(method) if is_plain(process_obj) else None
        (alone if group is None else group).append(process_obj)

    errors: list[OSError] = []
    if together["forkserver"]:
        from . import popen_forkserver

        group = together["forkserver"]
        errors += _note(group, popen_forkserver.launch_all(group))
    for process_obj in alone:
        try:
            process_obj.start()
        except OSError as exc:
            errors.append(exc)
    if together["fork"]:
        from . import popen_fork

        group = together["fork"]
        errors += _note(group, popen_fork.launch_all(group, fork))
    if errors:
        raise errors[0]


def _note(processes: Sequence[BaseProcess], popens: Sequence[Popen | OSError]) -> list[OSError]:
    """Tell the processes that have started; the errors of the others."""
    errors = []
    for process_obj, popen in zip(processes, popens, strict=True):
        if isinstance(popen, OSError):
            errors.append(popen)
        else:
            process_obj._became(popen)
    return errors
