"""What is done last before a fork, when the hooks of all others have run.

The interpreter calls hooks before a fork in the reverse order of their registration. So these are
registered when the package is imported, before most of a program has registered anything: what they
hold is not waited for by anybody's hook.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Guard(Protocol):
        """What has something to do around each fork of this process."""

        def before_fork(self) -> None: ...
        def after_in_parent(self) -> None: ...
        def after_in_child(self) -> None: ...


#: none until there is a pool
guards: list[Guard] = []


def _before() -> None:
    for guard in guards:
        guard.before_fork()


def _after_in_parent() -> None:
    for guard in guards:
        guard.after_in_parent()


def _after_in_child() -> None:
    for guard in guards:
        guard.after_in_child()


os.register_at_fork(
    before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child
)
