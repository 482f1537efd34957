"""multiprocessing's registries beside ours, in programs that have both.

Libraries register with either package: kombu with `billiard.util`, others with
`multiprocessing.util`; and either package may be the one that makes a child. billiard 4.3.2 shared
multiprocessing's registries. Here each has its own, and in every child both are served, once:

```
 child made by         after the fork                   at its end
 billiard              ours, then multiprocessing's     our _exit_function, then theirs
 multiprocessing,fork  theirs; one is our bridge, which theirs; one of its finalizers, set by
                       runs ours                        the bridge, is our _exit_function
 either, spawn         nothing is inherited             both through atexit
```

Objects of theirs can be given to children that billiard starts with `spawn` and `forkserver`, too:
`concurrent.futures.ProcessPoolExecutor` has a queue of theirs, whatever its context is.

multiprocessing is never imported from here. Whether the program has it is looked at when billiard
is imported and before every fork.
"""

from __future__ import annotations

import itertools
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class _Bridge:
    """Lives as long as the program: multiprocessing's registry holds it weakly."""

    #: whether multiprocessing knows of us
    registered = False


_bridge = _Bridge()


def _theirs(name: str) -> Any:
    """Their module of that name, if the program has it. Some put billiard's in its place."""
    name = f"multiprocessing.{name}"
    module = sys.modules.get(name)
    return module if getattr(module, "__name__", None) == name else None


def _loaded() -> Any:
    """`multiprocessing.util`, if the program has imported it completely."""
    module = _theirs("util")
    return module if hasattr(module, "ForkAwareLocal") else None


def install() -> None:
    """Watch for multiprocessing from now on."""
    os.register_at_fork(before=_register)
    _register()


def _register() -> None:
    # Called before every fork: as little as can be, for it is to be copied afterwards.
    if "multiprocessing.util" in sys.modules and not _bridge.registered:
        theirs = _loaded()
        if theirs is not None:
            _bridge.registered = True
            theirs.register_after_fork(_bridge, _in_their_child)
            if sys.modules["multiprocessing.process"].parent_process() is not None:
                # Imported in a child of theirs, which may end without atexit.
                _end_with_theirs(theirs)


def _end_with_theirs(theirs: Any) -> None:
    from . import util

    theirs.Finalize(None, util._exit_function, exitpriority=0)


def _in_their_child(_: _Bridge) -> None:
    """An after-fork callback of multiprocessing's."""
    from . import process, util

    if process._born == os.getpid():
        return

    process._children = set()
    util._finalizer_registry.clear()
    util._run_own_after_forkers()
    _end_with_theirs(_loaded())


def set_spawning_popen(popen: Any) -> None:
    """A child that billiard starts is being described, or (None) is not any more.

    Their objects ask their own context whether they may be pickled and where descriptors go.
    """
    context = _theirs("context")
    if hasattr(context, "set_spawning_popen"):
        context.set_spawning_popen(popen)


def reducers(ours: dict[type, Any]) -> dict[type, Any]:
    """How their objects are pickled into a child that is being started, where `ours` does not say.

    Of a ctypes type there may be objects in either package's shared memory, and plain ones.
    """
    pickler = getattr(_theirs("reduction"), "ForkingPickler", None)
    found: dict[type, Any] = {}
    for cls, reduce in getattr(pickler, "_extra_reducers", {}).items():
        if getattr(reduce, "__module__", "") == "multiprocessing.sharedctypes":
            found[cls] = _ByWrapper(reduce, ours.get(cls))
        elif cls not in ours:
            found[cls] = reduce
    return found


class _ByWrapper:
    """Pickles a ctypes object in the way of the package whose memory it is in."""

    def __init__(self, theirs: Any, ours: Any) -> None:
        self._theirs, self._ours = theirs, ours

    def __call__(self, obj: Any) -> Any:
        wrapper = getattr(obj, "_wrapper", None)
        if type(wrapper).__module__ == "multiprocessing.heap":
            return self._theirs(obj)
        return obj.__reduce_ex__(2) if self._ours is None else self._ours(obj)


def after_fork() -> None:
    """In a child that billiard made: what multiprocessing does in a child of its own."""
    theirs = _loaded()
    if theirs is not None:
        # The inherited children are the parent's: at exit they would be terminated.
        process: Any = sys.modules["multiprocessing.process"]
        process._children = set()
        process._process_counter = itertools.count(1)
        theirs._finalizer_registry.clear()
        theirs._run_after_forkers()


def at_exit() -> None:
    """In a child that billiard made: multiprocessing's part of the exit (it does it once)."""
    theirs = _loaded()
    if theirs is not None:
        from . import process

        if process._born == os.getpid():
            theirs._exit_function()
