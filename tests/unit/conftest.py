"""Fixtures of the unit tests that more than one of their files uses."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
from manager_types import Manager
from pool_tasks import pool_of

import billiard
from billiard.connection import Connection, Pipe

fork: Any = billiard.get_context("fork")


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


@pytest.fixture
def pool() -> Iterator[Any]:
    with pool_of(fork, 2) as made:
        yield made
