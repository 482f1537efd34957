"""billiard.connection: messages over pipes and sockets, waiting, listening, authentication."""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import os
import pickle
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from scripts import interpreters

import billiard
from billiard import _core, connection, resource_sharer
from billiard.connection import Client, Connection, Listener, Pipe, wait

KEY = b"the key"


@pytest.fixture(params=[True, False], ids=["sockets", "pipe"])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[Connection, Connection]]:
    """(receiving end, sending end) of each kind of channel."""
    reader, writer = Pipe(duplex=request.param)
    with reader, writer:
        yield reader, writer


@contextlib.contextmanager
def running(function: Callable[..., object], *args: object) -> Iterator[None]:
    """`function` in a thread, joined at the end."""
    thread = threading.Thread(target=function, args=args)
    thread.start()
    try:
        yield
    finally:
        thread.join(30)
        assert not thread.is_alive()


class Interrupted(Exception):
    pass


@contextlib.contextmanager
def alarm(after: float, interval: float = 0.0, raising: bool = True) -> Iterator[list[int]]:
    """A signal after that many seconds, whose handler raises `Interrupted` if asked."""
    arrived: list[int] = []

    def handler(signum: int, frame: object) -> None:
        arrived.append(signum)
        if raising:
            raise Interrupted

    old = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, after, interval)
    try:
        yield arrived
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def raw_write(end: Connection, data: bytes) -> None:
    assert os.write(end.fileno(), data) == len(data)


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
    with alarm(0.05), pytest.raises(Interrupted):
        reader.recv()


# --- signals -----------------------------------------------------------------------------------


def test_interrupted_receive_loses_nothing(ends: Any) -> None:
    reader, writer = ends
    wire = struct.pack("!i", 6) + b"abcdef"
    for part in (wire[:2], wire[2:7]):
        raw_write(writer, part)
        with alarm(0.05), pytest.raises(Interrupted):
            reader.recv_bytes()
    raw_write(writer, wire[7:])
    assert reader.recv_bytes() == b"abcdef"


@pytest.mark.parametrize("receive", ["recv", "recv_bytes", "recv_bytes_into"])
def test_interrupted_receive_of_a_big_object_goes_on_in_any_way(ends: Any, receive: str) -> None:
    reader, writer = ends
    body = pickle.dumps(b"x" * 100_000)
    wire = struct.pack("!i", len(body)) + body
    raw_write(writer, wire[:50_000])
    with alarm(0.05), pytest.raises(Interrupted):
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
    with alarm(0.05), pytest.raises(Interrupted):
        writer.send_bytes(big)
    received: list[bytes] = []
    with running(lambda: received.extend(reader.recv_bytes() for _ in range(2))):
        writer.send_bytes(b"next")
    assert received == [big, b"next"]


def test_handlers_that_return_do_not_end_a_wait(ends: Any) -> None:
    reader, writer = ends
    with alarm(0.02, 0.02, raising=False) as arrived:
        start = time.monotonic()
        assert not reader.poll(0.3)
        assert wait([reader], 0.3) == []
        assert 0.6 <= time.monotonic() - start < 5
    assert len(arrived) >= 2
    timer = threading.Timer(0.3, writer.send, ("late",))
    timer.start()
    with alarm(0.02, 0.02, raising=False):
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
    assert 0.0105 <= time.monotonic() - start < 5
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


# --- listening ---------------------------------------------------------------------------------

ADDRESSES: list[dict[str, Any]] = [
    {"family": "AF_INET"},
    {"family": "AF_UNIX"},
    {"address": f"\0billiard-test-{os.getpid()}"},
    {"address": ("127.0.0.1", 0), "authkey": KEY},
    {"authkey": KEY},
    {"authkey": b""},
]


@pytest.mark.parametrize("arguments", ADDRESSES, ids=str)
def test_listener_and_client_find_each_other(arguments: dict[str, Any]) -> None:
    with Listener(**arguments) as listener:

        def client() -> None:
            with Client(listener.address, authkey=arguments.get("authkey")) as there:
                there.send(there.recv() * 2)

        with running(client), listener.accept() as here:
            here.send(21)
            assert here.recv() == 42
        address = listener.address
    if type(address) is str:
        assert not os.path.exists(address)
    with pytest.raises(OSError):
        Client(address)
    with pytest.raises(OSError, match="listener is closed"):
        listener.accept()


def test_address_kinds() -> None:
    assert connection.address_type(("h", 1)) == "AF_INET"
    assert connection.address_type("/path") == "AF_UNIX"
    assert connection.address_type(b"\0abstract") == "AF_UNIX"
    assert connection.address_type(r"\\.\pipe") == "AF_PIPE"
    for bad in (5, None, b"/path"):
        with pytest.raises(ValueError):
            connection.address_type(bad)
    for call in (Listener, Client):
        with pytest.raises(ValueError, match="AF_PIPE"):
            call(r"\\.\pipe")
    with pytest.raises(ValueError):
        connection.arbitrary_address("AF_PIPE")


def test_address_in_use_is_oserror() -> None:
    with Listener() as listener, pytest.raises(OSError) as caught:
        Listener(listener.address)
    assert caught.value.errno == errno.EADDRINUSE


def test_authkey_must_be_bytes() -> None:
    for call in (lambda: Listener(authkey="text"), lambda: Client("/none", authkey="text")):
        with pytest.raises(TypeError, match="byte string"):
            call()


def test_wrong_key_is_an_authentication_error_on_both_sides() -> None:
    with Listener(authkey=KEY) as listener:

        def client() -> None:
            with pytest.raises(billiard.AuthenticationError):
                Client(listener.address, authkey=b"other")

        with running(client), pytest.raises(billiard.AuthenticationError):
            listener.accept()

        def right_one() -> None:
            Client(listener.address, authkey=KEY).close()

        with running(right_one):
            listener.accept().close()


def raw_client(address: str) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.connect(address)
    return client


@pytest.mark.parametrize("sent", [b"", b"\0\0", b"\0\0\0\x14abc", b"\0\0\0\x05hello", b"\0\1\0\0"])
def test_a_peer_that_breaks_the_handshake_does_not_hold_the_listener(sent: bytes) -> None:
    with Listener(authkey=KEY) as listener, raw_client(listener.address) as peer:
        peer.sendall(sent)
        peer.shutdown(socket.SHUT_WR)
        with pytest.raises((EOFError, OSError, billiard.AuthenticationError)):
            listener.accept()


@pytest.mark.parametrize("trickle", [False, True])
def test_a_peer_that_does_not_finish_the_handshake_is_dropped(
    trickle: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "CONNECTION_TIMEOUT", 0.3)
    done = threading.Event()
    with Listener(authkey=KEY) as listener, raw_client(listener.address) as peer:

        def drip() -> None:
            with contextlib.suppress(OSError):
                peer.sendall(struct.pack("!i", 200))
                while trickle and not done.wait(0.02):
                    peer.sendall(b"x")

        with running(drip):
            try:
                with pytest.raises(billiard.AuthenticationError, match="did not finish"):
                    listener.accept()
            finally:
                done.set()


def test_md5_peers_can_be_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "ALLOW_MD5", False)
    old_server, client = Pipe()
    with old_server, client:
        old_server.send_bytes(connection.CHALLENGE + bytes(20))
        with pytest.raises(billiard.AuthenticationError, match="MD5"):
            connection.answer_challenge(client, KEY)
    server, old_client = Pipe()
    with server, old_client:
        old_client.send_bytes(bytes(16))
        with pytest.raises(billiard.AuthenticationError, match="MD5"):
            connection.deliver_challenge(server, KEY)
        old_client.recv_bytes()
        assert old_client.recv_bytes() == connection.FAILURE


PEER = """
import sys
from multiprocessing.connection import Client, Listener
role, key = sys.argv[1], sys.argv[2].encode()
try:
    if role == "listen":
        with Listener(("127.0.0.1", 0), authkey=key) as listener:
            print(listener.address[1], flush=True)
            end = listener.accept()
    else:
        end = Client(("127.0.0.1", int(sys.argv[3])), authkey=key)
    with end:
        end.send(sys.version_info[:2])
        assert end.recv() == "hello"
except Exception as exc:
    print(type(exc).__name__, flush=True)
"""


def other_pythons() -> list[str]:
    return [sys.executable, *interpreters().values()]


@contextlib.contextmanager
def peer(python: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [python, "-I", "-c", PEER, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.wait(30)


@pytest.mark.parametrize("python", other_pythons())
def test_authentication_works_with_multiprocessing(python: str) -> None:
    with peer(python, "listen", KEY.decode()) as process:
        assert process.stdout
        port = int(process.stdout.readline())
        with Client(("127.0.0.1", port), authkey=KEY) as end:
            assert end.recv() >= (3, 0)
            end.send("hello")
        assert process.stdout.read() == ""
    with (
        Listener(("127.0.0.1", 0), authkey=KEY) as listener,
        peer(python, "call", KEY.decode(), str(listener.address[1])) as process,
    ):
        with listener.accept() as end:
            assert end.recv() >= (3, 0)
            end.send("hello")
        assert process.stdout
        assert process.stdout.read() == ""


@pytest.mark.parametrize("python", other_pythons())
def test_wrong_keys_are_refused_by_and_from_multiprocessing(python: str) -> None:
    with peer(python, "listen", "other") as process:
        assert process.stdout
        port = int(process.stdout.readline())
        with pytest.raises(billiard.AuthenticationError):
            Client(("127.0.0.1", port), authkey=KEY)
        assert process.stdout.read().strip() == "AuthenticationError"
    with (
        Listener(("127.0.0.1", 0), authkey=KEY) as listener,
        peer(python, "call", "other", str(listener.address[1])) as process,
    ):
        with pytest.raises(billiard.AuthenticationError):
            listener.accept()
        assert process.stdout
        assert process.stdout.read().strip() == "AuthenticationError"


def test_xml_connections_carry_objects() -> None:
    with connection.XmlListener() as listener:

        def client() -> None:
            end = connection.XmlClient(listener.address)
            end.send([1, "two", {"x": 2.5}])
            end.close()

        with running(client):
            end = listener.accept()
            assert end.recv() == [1, "two", {"x": 2.5}]
            end.close()


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


@pytest.mark.parametrize("prefix", [b"", b"{md5}", b"{sha256}"])
def test_an_answer_is_of_the_kind_of_its_challenge(prefix: bytes) -> None:
    challenge = prefix + bytes(20)
    answer = connection._create_response(KEY, challenge)
    assert answer.startswith(prefix)
    connection._verify_challenge(KEY, challenge, answer)
    with pytest.raises(billiard.AuthenticationError):
        connection._verify_challenge(KEY, challenge + b"x", answer)
