"""billiard.connection: messages over pipes and sockets, the objects at their ends, and children."""

from __future__ import annotations

import array
import errno
import gc
import os
import resource
import socket
import struct
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from connection_helpers import raw_write, running, unread

import billiard
from billiard import _core, resource_sharer
from billiard.connection import Connection, Pipe, wait

# --- messages ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 3, 4096, 16384, 65536, 1 << 20, 40 << 20])
def test_messages_of_any_size_arrive_whole(ends: Any, size: int) -> None:
    reader, writer = ends
    message = os.urandom(min(size, 1 << 20)) * max(1, size >> 20)
    with running(writer.send_bytes, message):
        assert reader.recv_bytes() == message


def test_objects_arrive_equal_and_in_order(ends: Any) -> None:
    reader, writer = ends
    objects = [None, 1, "text", b"bytes", {"a": [1, 2.5]}, (1, 2), ValueError("x")]
    for item in objects:
        writer.send(item)
    assert repr([reader.recv() for _ in objects]) == repr(objects)


@pytest.mark.parametrize("size", [1000, 64 << 10, 1 << 20, 9 << 20])
def test_big_objects_do_not_share_memory_with_later_ones(ends: Any, size: int) -> None:
    reader, writer = ends
    objects = [bytearray([n]) * size for n in range(4)]

    def send() -> None:
        for item in objects:
            writer.send(item)

    with running(send):
        received = [reader.recv() for _ in objects]
    assert received == objects


class Nested:
    """Receives another message while it is being unpickled."""

    source: Connection

    def __init__(self) -> None:
        self.body = bytes(100_000)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.inner = self.source.recv()
        self.__dict__.update(state)


def test_receiving_within_a_receive(ends: Any) -> None:
    reader, writer = ends
    Nested.source = reader
    inner = b"x" * 200_000
    with running(lambda: (writer.send(Nested()), writer.send(inner))):
        outer = reader.recv()
    assert (outer.body, outer.inner) == (bytes(100_000), inner)


def test_wire_format_is_multiprocessing_s(ends: Any) -> None:
    reader, writer = ends
    writer.send_bytes(b"abc")
    assert os.read(reader.fileno(), 100) == struct.pack("!i", 3) + b"abc"
    raw_write(writer, struct.pack("!i", 2) + b"xy" + struct.pack("!iQ", -1, 3) + b"abc")
    assert (reader.recv_bytes(), reader.recv_bytes()) == (b"xy", b"abc")


@pytest.mark.stress
def test_messages_over_two_gib() -> None:
    size = (2 << 30) + 5
    with open("/proc/meminfo") as info:
        available = next(int(line.split()[1]) for line in info if line.startswith("MemAvailable"))
    if available << 10 < 3 * size:
        pytest.skip("not enough memory")
    reader, writer = Pipe(duplex=False)
    with reader, writer, running(writer.send_bytes, bytes(size - 1) + b"!"):
        received = reader.recv_bytes()
    assert len(received) == size
    assert received[-1:] == b"!"


@pytest.mark.parametrize("arguments, expected", [((2,), b"cdef"), ((2, 3), b"cde"), ((6,), b"")])
def test_send_bytes_takes_a_part(ends: Any, arguments: Any, expected: bytes) -> None:
    reader, writer = ends
    writer.send_bytes(b"abcdef", *arguments)
    assert reader.recv_bytes() == expected


@pytest.mark.parametrize("arguments", [(-1,), (7,), (0, -1), (4, 3)])
def test_send_bytes_refuses_parts_outside(ends: Any, arguments: Any) -> None:
    with pytest.raises(ValueError):
        ends[1].send_bytes(b"abcdef", *arguments)


def test_send_bytes_takes_any_buffer_by_its_bytes(ends: Any) -> None:
    reader, writer = ends
    numbers = array.array("i", range(5))
    for buffer in (bytearray(b"ab"), memoryview(b"abc")[1:], numbers, array.array("d")):
        writer.send_bytes(buffer)
        assert reader.recv_bytes() == bytes(buffer)
    writer.send_bytes(numbers, 4, 8)
    assert reader.recv_bytes() == numbers.tobytes()[4:12]
    with pytest.raises(TypeError):
        writer.send_bytes("text")


def test_recv_bytes_into_fills_in_place(ends: Any) -> None:
    reader, writer = ends
    room = bytearray(10)
    writer.send_bytes(b"abc")
    assert reader.recv_bytes_into(room, 4) == 3
    assert room == b"\0\0\0\0abc\0\0\0"
    numbers = array.array("i", [0] * 4)
    writer.send_bytes(array.array("i", [7, 8]))
    assert reader.recv_bytes_into(numbers, 8) == 8
    assert list(numbers) == [0, 0, 7, 8]


def test_recv_bytes_into_too_little_room_hands_the_message_over(ends: Any) -> None:
    reader, writer = ends
    writer.send_bytes(b"abcdef")
    writer.send_bytes(b"next")
    with pytest.raises(billiard.BufferTooShort) as caught:
        reader.recv_bytes_into(bytearray(8), 3)
    assert caught.value.args == (b"abcdef",)
    assert reader.recv_bytes() == b"next"


def test_recv_bytes_into_bad_arguments_cost_no_message(ends: Any) -> None:
    reader, writer = ends
    writer.send_bytes(b"abc")
    for offset in (-1, 11):
        with pytest.raises(ValueError):
            reader.recv_bytes_into(bytearray(10), offset)
    with pytest.raises(TypeError):
        reader.recv_bytes_into(b"read-only")
    assert reader.recv_bytes() == b"abc"


def test_maxlength_lets_what_fits_through(ends: Any) -> None:
    reader, writer = ends
    writer.send_bytes(b"abc")
    assert reader.recv_bytes(3) == b"abc"
    with pytest.raises(ValueError):
        reader.recv_bytes(-1)


def refuse(reader: Connection, maxlength: int | None = None) -> None:
    writable = reader.writable
    with pytest.raises(OSError, match="bad message length") as caught:
        reader.recv_bytes(maxlength)
    assert caught.value.errno == errno.EMSGSIZE
    # what follows on the stream means nothing any more
    assert reader.closed if not writable else not reader.readable
    with pytest.raises(OSError) as again:
        reader.recv_bytes()
    assert again.value.errno == errno.EBADF


def test_message_above_maxlength_ends_reading(ends: Any) -> None:
    reader, writer = ends
    writer.send_bytes(b"abcd")
    refuse(reader, 3)


@pytest.mark.parametrize(
    "length",
    [struct.pack("!i", -2), struct.pack("!i", -(2**31)), struct.pack("!iQ", -1, 2**64 - 1)],
)
def test_forged_length_is_refused(ends: Any, length: bytes) -> None:
    reader, writer = ends
    raw_write(writer, length)
    refuse(reader)


def test_forged_length_gets_no_memory_before_its_bytes(ends: Any) -> None:
    reader, writer = ends
    raw_write(writer, struct.pack("!iQ", -1, 1 << 46) + b"x")
    writer.close()
    old = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as statm:
        now = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + (256 << 20), old[1]))
    try:
        with pytest.raises(OSError, match="end of file during message"):
            reader.recv_bytes()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, old)


@pytest.mark.parametrize("sent", [b"", struct.pack("!i", 5), struct.pack("!i", -1)])
def test_end_of_file_between_parts_is_eoferror(ends: Any, sent: bytes) -> None:
    reader, writer = ends
    raw_write(writer, sent) if sent else None
    writer.close()
    with pytest.raises(EOFError):
        reader.recv()


@pytest.mark.parametrize("sent", [b"\0", struct.pack("!i", 5) + b"abc", b"\xff\xff\xff\xff\0"])
def test_end_of_file_within_a_part_is_oserror(ends: Any, sent: bytes) -> None:
    reader, writer = ends
    raw_write(writer, sent)
    writer.close()
    with pytest.raises(OSError, match="got end of file during message") as caught:
        reader.recv()
    assert caught.value.errno == errno.EIO


def test_sending_to_nobody_is_broken_pipe(ends: Any) -> None:
    reader, writer = ends
    reader.close()
    with pytest.raises(BrokenPipeError) as caught:
        writer.send(1)
    assert caught.value.errno == errno.EPIPE


def test_a_failed_send_is_collected_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPython 3.13 tells when a file in memory cannot be closed for a view of it."""
    said: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)

    def fail() -> None:
        reader, writer = Pipe()
        reader.close()
        with writer:
            try:
                writer.send([1] * 100)
            except OSError as exc:
                cycle = exc  # whose traceback knows this frame
        assert cycle

    fail()
    gc.collect()
    assert not said


# --- the object --------------------------------------------------------------------------------


def test_one_way_ends_refuse_the_other_way() -> None:
    reader, writer = Pipe(duplex=False)
    with reader, writer:
        assert (reader.readable, reader.writable) == (True, False)
        assert (writer.readable, writer.writable) == (False, True)
        for call in (lambda: reader.send(1), writer.recv, writer.poll):
            with pytest.raises(OSError, match="connection is") as caught:
                call()
            assert caught.value.errno == errno.EBADF


def test_closed_connection_says_so(ends: Any) -> None:
    reader, _ = ends
    reader.close()
    reader.close()
    assert reader.closed
    for call in (
        reader.recv,
        reader.recv_bytes,
        reader.poll,
        reader.fileno,
        lambda: wait([reader]),
    ):
        with pytest.raises(OSError, match="handle is closed") as caught:
            call()
        assert caught.value.errno == errno.EBADF


def test_bad_handles_are_refused() -> None:
    for handle, error in ((-1, ValueError), ("x", TypeError), (1.5, TypeError)):
        with pytest.raises(error):
            Connection(handle)
    with pytest.raises(ValueError):
        Connection(0, readable=False, writable=False)


def test_not_an_open_descriptor_is_valueerror() -> None:
    broken = Connection(1 << 20)
    try:
        with pytest.raises(ValueError, match="invalid file descriptor 1048576"):
            broken.poll()
        with pytest.raises(OSError) as caught:
            broken.recv()
        assert caught.value.errno == errno.EBADF
    finally:
        broken._handle = None


def test_dropped_connection_closes_its_descriptor() -> None:
    reader, writer = Pipe()
    fd = reader.fileno()
    del reader
    with pytest.raises(OSError):
        os.fstat(fd)
    with pytest.raises(EOFError), writer:
        writer.recv()


@pytest.mark.parametrize("duplex", [True, False])
def test_descriptors_are_close_on_exec_and_non_blocking_where_asked(duplex: bool) -> None:
    for nonblock in ((False, False), (True, False), (False, True)):
        for end, wanted in zip(Pipe(duplex, *nonblock), nonblock, strict=True):
            with end:
                assert not os.get_inheritable(end.fileno())
                assert os.get_blocking(end.fileno()) is not wanted


def test_a_connection_that_is_closed_while_it_is_being_closed_is_closed_once() -> None:
    """As by another thread: the number may be another file's by then."""
    one, two = Pipe()
    closed = []

    def close_meanwhile(fd: int) -> None:
        one.close()
        closed.append(fd)
        os.close(fd)

    fd = one.fileno()
    one._close(close_meanwhile)
    assert one.closed and closed == [fd]
    two.close()


# --- other processes ---------------------------------------------------------------------------


def echo(end: Connection) -> None:
    with end:
        while (item := end.recv()) is not None:
            end.send(item)


def test_connections_go_to_children(ctx: Any) -> None:
    here, there = Pipe()
    process = ctx.Process(target=echo, args=(there,))
    process.start()
    there.close()
    for item in (1, "x" * 1_000_000, [None]):
        here.send(item)
        assert here.recv() == item
    here.send(None)
    process.join()
    with pytest.raises(EOFError), here:
        here.recv()


def answer_on_what_comes(end: Connection) -> None:
    with end:
        for other in end.recv():
            other.send((other.readable, other.writable))
            other.close()


def test_connections_travel_over_connections(ctx: Any) -> None:
    here, there = Pipe()
    process = ctx.Process(target=answer_on_what_comes, args=(there,))
    process.start()
    there.close()
    duplex, its_end = Pipe()
    reader, writer = Pipe(duplex=False)
    here.send([its_end, writer])
    with here, duplex, reader:
        assert duplex.recv() == (True, True)
        assert reader.recv() == (False, True)
        its_end.close()
        writer.close()
        process.join()
    resource_sharer.stop(timeout=10)


# --- the calls under `_billiard` ---------------------------------------------------------------


def test_read_returns_a_count(ends: Any) -> None:
    reader, writer = ends
    fd = reader.fileno()
    raw_write(writer, b"abcdefgh")
    room = memoryview(bytearray(4))
    assert _core.read(fd, room[1:], 2) == 2
    assert bytes(room) == b"\0ab\0"
    assert _core.read(fd, room) == 4
    assert _core.read(fd, room, 4) == 2
    assert bytes(room) == b"ghef"
    writer.close()
    assert _core.read(fd, room) == 0


def test_read_refuses_bad_arguments(ends: Any) -> None:
    fd = ends[0].fileno()
    for arguments, error in (
        ((bytearray(4), 5), ValueError),
        ((bytearray(4), -1), ValueError),
        ((b"abcd",), TypeError),
        ((4,), TypeError),
    ):
        with pytest.raises(error):
            _core.read(fd, *arguments)
    with pytest.raises(OSError) as caught:
        _core.read(fd, bytearray())
    assert caught.value.errno == errno.EINVAL
    os.set_blocking(fd, False)
    with pytest.raises(BlockingIOError) as caught:
        _core.read(fd, bytearray(4))
    assert caught.value.errno == errno.EAGAIN


def test_descriptors_pass_over_a_socket() -> None:
    left, right = socket.socketpair()
    reader, writer = Pipe(duplex=False)
    with left, right, reader:
        _core.sendfd(left.fileno(), writer.fileno())
        writer.close()
        received = _core.recvfd(right.fileno())
        assert not os.get_inheritable(received)
        with Connection(received, readable=False) as arrived:
            arrived.send("through")
        assert reader.recv() == "through"
        left.send(b"x")
        with pytest.raises(RuntimeError):
            _core.recvfd(right.fileno())
        left.close()
        with pytest.raises(EOFError):
            _core.recvfd(right.fileno())


def test_address_of_buffer() -> None:
    import ctypes

    memory = ctypes.create_string_buffer(12)
    assert _core.address_of_buffer(memory) == (ctypes.addressof(memory), 12)
    with pytest.raises(TypeError):
        _core.address_of_buffer(b"read-only")


def asleep(thread_id: int) -> bool:
    stat = Path(f"/proc/self/task/{thread_id}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] == "S"


@pytest.mark.parametrize("receive", ["recv", "recv_bytes", "recv_bytes_into"])
def test_the_rest_of_a_message_is_not_read_from_what_gets_the_descriptor_next(
    ends: Any, receive: str
) -> None:
    reader, writer = ends
    threads: list[int] = []
    outcome: list[BaseException] = []

    def receiving() -> None:
        threads.append(threading.get_native_id())
        arguments = [bytearray(10)] if receive == "recv_bytes_into" else []
        try:
            getattr(reader, receive)(*arguments)
        except BaseException as exc:
            outcome.append(exc)

    others_reader, others_writer = os.pipe()
    os.write(others_writer, b"not a message")
    with running(receiving):
        raw_write(writer, struct.pack("!i", 8) + b"half")
        while unread(reader) or not asleep(threads[0]):
            os.sched_yield()
        number = reader.fileno()
        kept = os.dup(number)  # or the other end would hear that there is nobody left
        reader.close()
        os.dup2(others_reader, number, inheritable=False)
        raw_write(writer, b"hal")
    (exc,) = outcome
    assert isinstance(exc, OSError) and exc.errno == errno.EBADF
    assert os.read(number, 100) == b"not a message"
    for fd in (others_reader, others_writer, number, kept):
        os.close(fd)
