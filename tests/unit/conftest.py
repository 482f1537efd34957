"""What the unit tests of one subject share when they are in several files."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from manager_types import Manager

from billiard.connection import Connection, Pipe


@pytest.fixture(params=[True, False], ids=["sockets", "pipe"])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[Connection, Connection]]:
    """(receiving end, sending end) of each kind of channel."""
    reader, writer = Pipe(duplex=request.param)
    with reader, writer:
        yield reader, writer


@pytest.fixture(scope="module")
def module_manager() -> Iterator[Manager]:
    with Manager() as manager:
        yield manager


@pytest.fixture
def manager(module_manager: Manager) -> Iterator[Manager]:
    """A started manager, which must have no objects left afterwards."""
    # This thread's connection belongs to the test, so that the next one finds no new descriptor.
    yield module_manager
    gc.collect()
    assert module_manager._number_of_objects() == 0, module_manager._debug_info()
