"""What the unit tests of one subject share when they are in several files."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from billiard.connection import Connection, Pipe


@pytest.fixture(params=[True, False], ids=["sockets", "pipe"])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[Connection, Connection]]:
    """(receiving end, sending end) of each kind of channel."""
    reader, writer = Pipe(duplex=request.param)
    with reader, writer:
        yield reader, writer
