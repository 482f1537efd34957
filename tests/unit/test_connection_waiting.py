"""billiard.connection: ends that do not block, waits that signals interrupt, poll and wait."""

from __future__ import annotations

import errno
import fcntl
import os
import pickle
import resource
import socket
import struct
import threading
import time
from typing import Any

import pytest
from alarms import Interrupt, alarm, alarm_in_a_send, alarms, interrupt
from connection_helpers import raw_write, running

from billiard import connection
from billiard.connection import Connection, Pipe, wait

# --- non-blocking ends -------------------------------------------------------------------------


def test_non_blocking_receive_goes_on_where_it_stopped() -> None:
    reader, writer = Pipe(duplex=False, rnonblock=True)
    with reader, writer:
        wire = struct.pack("!i", 6) + b"abcdef" + struct.pack("!i", 1) + b"z"
        for byte in wire[:9]:
            with pytest.raises(BlockingIOError) as caught:
                reader.recv_bytes()
            assert caught.value.errno == errno.EAGAIN
            raw_write(writer, bytes([byte]))
        raw_write(writer, wire[9:])
        assert reader.recv_bytes() == b"abcdef"
        assert reader.recv_bytes() == b"z"


def test_non_blocking_receive_into_goes_on_where_it_stopped() -> None:
    reader, writer = Pipe(duplex=False, rnonblock=True)
    with reader, writer:
        room = bytearray(8)
        raw_write(writer, struct.pack("!i", 6) + b"abc")
        with pytest.raises(BlockingIOError):
            reader.recv_bytes_into(room, 1)
        raw_write(writer, b"def")
        assert reader.recv_bytes_into(room, 1) == 6
        assert room == b"\0abcdef\0"


def test_full_non_blocking_end_says_eagain_and_keeps_message_boundaries() -> None:
    reader, writer = Pipe(duplex=False, wnonblock=True)
    with reader, writer:
        big = os.urandom(100_000)
        with pytest.raises(BlockingIOError) as caught:
            writer.send_bytes(big)
        assert caught.value.errno == errno.EAGAIN
        received: list[bytes] = []
        with running(lambda: received.extend(reader.recv_bytes() for _ in range(2))):
            wait_writable(writer)
            while True:
                try:
                    writer.send_bytes(b"next")  # after the rest of the first message
                    break
                except BlockingIOError:
                    wait_writable(writer)
        assert received == [big, b"next"]


def wait_writable(end: Connection) -> None:
    import select

    poll = select.poll()
    poll.register(end, select.POLLOUT)
    assert poll.poll(10_000)


def test_send_offset_writes_what_fits_and_tells_how_much() -> None:
    reader, writer = Pipe(duplex=False, wnonblock=True)
    with reader, writer:
        body = memoryview(os.urandom(200_000))
        done = writer.send_offset(body, 0)
        assert 0 < done < len(body)
        with pytest.raises(BlockingIOError) as caught:
            writer.send_offset(body, done)
        assert caught.value.errno == errno.EAGAIN
        received = b""
        while len(received) < len(body):
            received += os.read(reader.fileno(), 1 << 16)
            if done < len(body):
                done += writer.send_offset(body, done)
        assert received == body
        assert connection.send_offset(writer.fileno(), body, len(body) - 3) == 3


def test_setblocking_changes_the_descriptor(ends: Any) -> None:
    reader, _ = ends
    reader.setblocking(False)
    with pytest.raises(BlockingIOError):
        reader.recv()
    reader.setblocking(True)
    with pytest.raises(Interrupt), alarm(interrupt):
        reader.recv()


# --- signals -----------------------------------------------------------------------------------


def test_interrupted_receive_loses_nothing(ends: Any) -> None:
    reader, writer = ends
    wire = struct.pack("!i", 6) + b"abcdef"
    for part in (wire[:2], wire[2:7]):
        raw_write(writer, part)
        with pytest.raises(Interrupt), alarm(interrupt):
            reader.recv_bytes()
    raw_write(writer, wire[7:])
    assert reader.recv_bytes() == b"abcdef"


@pytest.mark.parametrize("receive", ["recv", "recv_bytes", "recv_bytes_into"])
def test_interrupted_receive_of_a_big_object_goes_on_in_any_way(ends: Any, receive: str) -> None:
    reader, writer = ends
    body = pickle.dumps(b"x" * 100_000)
    wire = struct.pack("!i", len(body)) + body
    raw_write(writer, wire[:50_000])
    with pytest.raises(Interrupt), alarm(interrupt):
        reader.recv()
    with running(raw_write, writer, wire[50_000:]):
        if receive == "recv":
            assert reader.recv() == b"x" * 100_000
        elif receive == "recv_bytes":
            assert reader.recv_bytes() == body
        else:
            room = bytearray(len(body))
            assert reader.recv_bytes_into(room) == len(body)
            assert room == body


def test_interrupted_send_keeps_message_boundaries(ends: Any) -> None:
    reader, writer = ends
    big = os.urandom(1 << 20)
    with pytest.raises(Interrupt), alarm_in_a_send(reader, interrupt):
        writer.send_bytes(big)
    received: list[bytes] = []
    with running(lambda: received.extend(reader.recv_bytes() for _ in range(2))):
        writer.send_bytes(b"next")
    assert received == [big, b"next"]


def test_handlers_that_return_do_not_end_a_wait(ends: Any) -> None:
    reader, writer = ends
    with alarms(0.02) as arrived:
        start = time.monotonic()
        assert not reader.poll(0.3)
        assert wait([reader], 0.3) == []
        assert 0.6 <= time.monotonic() - start < 30
    assert len(arrived) >= 2
    timer = threading.Timer(0.3, writer.send, ("late",))
    timer.start()
    with alarms(0.02):
        assert reader.recv() == "late"
    timer.join()


# --- poll and wait -----------------------------------------------------------------------------


def test_poll_tells_what_is_there(ends: Any) -> None:
    reader, writer = ends
    assert not reader.poll()
    assert not reader.poll(-1)
    writer.send(1)
    assert reader.poll()
    assert reader.poll(None)
    assert reader.recv() == 1
    writer.close()
    assert reader.poll()  # the end of the file is something to read


def test_poll_is_precise_and_refuses_what_is_no_time(ends: Any) -> None:
    reader, _ = ends
    start = time.monotonic()
    assert not reader.poll(0.0105)
    assert 0.0105 <= time.monotonic() - start < 30
    for timeout, error in ((float("nan"), ValueError), (1e30, OverflowError), ("1", TypeError)):
        with pytest.raises(error):
            reader.poll(timeout)


def test_wait_takes_connections_sockets_and_descriptors_once_each() -> None:
    reader, writer = Pipe()
    left, right = socket.socketpair()
    with reader, writer, left, right:
        assert wait([], 0) == []
        assert wait([reader, left, writer], 0) == []
        writer.send(1)
        right.send(b"x")
        assert wait([reader, reader, left]) == [reader, left]
        assert wait(iter([writer, reader.fileno()]), 5) == [reader.fileno()]


def test_wait_refuses_what_cannot_be_waited_for() -> None:
    left, right = socket.socketpair()
    right.close()
    left.close()
    for item in (left, -1, 1 << 20):
        with pytest.raises(ValueError):
            wait([item], 0)
    with pytest.raises(TypeError):
        wait(["x"], 0)


def test_wait_and_poll_work_above_descriptor_1024() -> None:
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft <= 1200:
        pytest.skip("too few descriptors allowed")
    reader, writer = Pipe()
    with reader, writer, Connection(fcntl.fcntl(reader, fcntl.F_DUPFD_CLOEXEC, 1100)) as high:
        writer.send("x")
        assert high.poll(5)
        assert wait([high], 5) == [high]
        assert high.recv() == "x"


def test_wait_on_a_sentinel(ctx: Any) -> None:
    process = ctx.Process(target=int)
    process.start()
    assert wait([process.sentinel], 30) == [process.sentinel]
    process.join()
