"""Objects that travel through extents of shared memory: `billiard._core.Extent*`."""

from __future__ import annotations

import copyreg
import os
import pickle
import random
import signal
import threading
import time
from functools import partial
from typing import Any

import numpy as np
import pytest

from billiard import _core, resource_sharer
from billiard.reduction import ForkingPickler, recv_handle, send_handle

MEGABYTE = 1 << 20
LARGE = 64 << 10


class Peer:
    """A process that receives messages as `holder` and does with each what it is told."""

    def __init__(self, ctx: Any, sender: Any, holder: int, job: Any) -> None:
        self.conn, other = ctx.Pipe()
        self.process = ctx.Process(target=_peer, args=(other, holder, job))
        self.process.start()
        other.close()
        send_handle(self.conn, sender.fd, self.process.pid)

    def ask(self, message: Any) -> Any:
        self.conn.send(message)
        return self.answer()

    def answer(self) -> Any:
        assert self.conn.poll(30), "no answer"
        return self.conn.recv()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.conn.close()

    def end(self) -> None:
        self.conn.send(None)
        self.process.join(30)
        assert self.process.exitcode == 0
        self.conn.close()


def _peer(conn: Any, holder: int, job: Any) -> None:
    receiver = _core.ExtentReceiver(recv_handle(conn), holder)
    kept: list[Any] = []
    while (index := conn.recv()) is not None:
        conn.send(job(receiver, index, kept))


def receive(receiver: Any, index: int, kept: list[Any]) -> Any:
    return receiver.receive(index)


def add_up_and_change(receiver: Any, index: int, kept: list[Any]) -> float:
    array = receiver.receive(index)
    total = float(array.sum())
    array[:] = -1
    return total


def keep(receiver: Any, index: int, kept: list[Any]) -> int:
    kept.append(receiver.receive(index))
    return len(kept)


def keep_or_forget(receiver: Any, index: int, kept: list[Any]) -> bool:
    """Receive an array, check it and those kept before, and forget some of them."""
    kept.append(receiver.receive(index))
    good = all(bool((array == array[0]).all()) for array in kept)
    random.shuffle(kept)
    del kept[4:]
    return good


def here(sender: Any, holder: int = 0) -> Any:
    return _core.ExtentReceiver(os.dup(sender.fd), holder)


def send(sender: Any, obj: object) -> int:
    index = sender.send(ForkingPickler, obj)
    assert index is not None
    return int(index)


OBJECTS = [
    None,
    {"a": [1, 2.5, "text"], "b": (None, True)},
    b"x" * (3 * MEGABYTE),
    bytearray(b"y" * MEGABYTE),
    "ä" * MEGABYTE,
    [b"a" * LARGE, "b" * LARGE, b"c" * (LARGE - 1)],
    list(range(100_000)),
    pickle.loads,
]


@pytest.mark.parametrize("obj", OBJECTS, ids=lambda obj: f"{type(obj).__name__}")
def test_objects_arrive_as_they_were(obj: object) -> None:
    sender = _core.ExtentSender()
    receiver = here(sender)
    for _ in range(3):  # new, used before, mapped before
        assert receiver.receive(send(sender, obj)) == obj
        assert receiver.read(sender.lay_out(ForkingPickler, obj)) == obj
    assert sender.lent == 0


@pytest.mark.parametrize("size", [0, 1, LARGE - 8, LARGE, MEGABYTE // 2, MEGABYTE, 5 * MEGABYTE])
def test_arrays_arrive_writable_and_whole(size: int) -> None:
    sender = _core.ExtentSender()
    receiver = here(sender)
    array = np.arange(size, dtype=np.uint8)
    for _ in range(3):
        for other in (
            receiver.receive(send(sender, array)),
            receiver.read(sender.lay_out(ForkingPickler, array)),
        ):
            assert other.dtype == array.dtype and (other == array).all()
            assert other.flags.writeable
            other[:] = 7
    assert (array == np.arange(size, dtype=np.uint8)).all()
    del other
    assert sender.lent == 0


def test_several_buffers_in_one_message() -> None:
    sender = _core.ExtentSender()
    shared = np.arange(300_000.0)
    message = {
        "c": shared.reshape(300, 1000),
        "f": np.asfortranarray(shared.reshape(300, 1000)),
        "strided": shared[::3],
        "tiny": shared[:10],
        "twice": [shared, shared],
        "bytes": b"z" * MEGABYTE,
    }
    other = here(sender).receive(send(sender, message))
    for name in ("c", "f", "strided", "tiny"):
        assert (other[name] == message[name]).all()
        assert other[name].flags.writeable
    assert other["f"].flags.f_contiguous
    assert other["twice"][0] is other["twice"][1]
    assert other["bytes"] == message["bytes"]
    last = other["twice"][0]
    del other
    assert sender.lent > 0
    assert (last == shared).all()
    del last
    assert sender.lent == 0


def test_what_was_read_only_stays_so() -> None:
    sender = _core.ExtentSender()
    receiver = here(sender)
    array = np.arange(float(LARGE))
    array.flags.writeable = False
    assert not receiver.receive(send(sender, array)).flags.writeable
    data = os.urandom(2 * MEGABYTE)
    other = receiver.receive(send(sender, pickle.PickleBuffer(data)))
    assert other == data
    with pytest.raises(TypeError):
        other[0] = 1


def test_large_buffers_are_beside_the_pickle() -> None:
    array = np.zeros(MEGABYTE, dtype=np.uint8)
    pickled, has_buffers, size = _core.ExtentSender.pickle(ForkingPickler, [array, array[:100]])
    assert has_buffers and len(pickled) < 2000
    assert size >= MEGABYTE + len(pickled)
    pickled, has_buffers, _ = _core.ExtentSender.pickle(ForkingPickler, [array[:100], "text"])
    assert not has_buffers
    assert pickle.loads(pickled)[1] == "text"


def test_a_pickle_in_pieces_is_put_together() -> None:
    obj = [b"a" * LARGE, 1, b"b" * LARGE, "c" * 300_000, 2]
    pickled, has_buffers, _ = _core.ExtentSender.pickle(ForkingPickler, obj)
    assert not has_buffers
    assert pickle.loads(pickled) == obj


def test_a_pickle_made_otherwise_is_a_message() -> None:
    sender = _core.ExtentSender()
    by_value = ForkingPickler.dumps(lambda x: x + 1)
    assert here(sender).read(sender.lay_out_pickle(by_value))(1) == 2


class Registered:
    def __init__(self, number: int) -> None:
        self.number = number


class Nested:
    """Pickles something of its own while it is pickled."""

    def __init__(self, obj: object) -> None:
        self.obj = obj

    def __reduce__(self) -> Any:
        return _core.ExtentReceiver.read, (_core.ExtentSender.lay_out(ForkingPickler, self.obj),)


def reduce_registered(obj: Registered) -> Any:
    return Registered, (obj.number + 1,)


def test_reducers_count_that_are_registered_later() -> None:
    lay_out = partial(_core.ExtentSender.lay_out, ForkingPickler)
    obj = Registered(1)
    assert _core.ExtentReceiver.read(lay_out(obj)).number == 1
    copyreg.pickle(Registered, reduce_registered)
    try:
        assert _core.ExtentReceiver.read(lay_out(obj)).number == 2
    finally:
        del copyreg.dispatch_table[Registered]
    ForkingPickler.register(Registered, reduce_registered)
    try:
        assert _core.ExtentReceiver.read(lay_out(obj)).number == 2
    finally:
        del ForkingPickler._extra_reducers[Registered]
    assert _core.ExtentReceiver.read(lay_out(obj)).number == 1


def test_sockets_and_methods_have_reducers() -> None:
    import socket

    lay_out = partial(_core.ExtentSender.lay_out, ForkingPickler)
    one, two = socket.socketpair()
    try:
        with one, two, _core.ExtentReceiver.read(lay_out(one)) as again:
            again.sendall(b"text")
            assert two.recv(10) == b"text"
    finally:
        resource_sharer.stop()
    assert _core.ExtentReceiver.read(lay_out("text".upper))() == "TEXT"


class Upper(ForkingPickler):
    """A pickler of somebody else's."""

    def persistent_id(self, obj: object) -> Any:
        return None

    def reducer_override(self, obj: Any) -> Any:
        return (Registered, (99,)) if isinstance(obj, Registered) else NotImplemented


def test_other_picklers_are_used_as_they_are() -> None:
    array = np.arange(float(LARGE))
    message = _core.ExtentSender.lay_out(Upper, [Registered(1), array])
    other, same = _core.ExtentReceiver.read(message)
    assert other.number == 99
    assert (same == array).all()


def test_pickling_inside_of_pickling() -> None:
    array = np.arange(float(LARGE))
    obj = [array, Nested([array, Nested("inner")]), array]
    message = _core.ExtentSender.lay_out(ForkingPickler, obj)
    one, (two, inner), three = _core.ExtentReceiver.read(message)
    assert one is three and inner == "inner"
    assert (one == array).all() and (two == array).all()


def test_an_object_that_cannot_be_pickled_spoils_nothing() -> None:
    sender = _core.ExtentSender()
    array = np.arange(float(LARGE))
    for bad in ([array, lambda: 0], [array, threading.Lock()]):
        with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
            sender.send(ForkingPickler, bad)
        assert sender.lent == 0
        assert (here(sender).receive(send(sender, array)) == array).all()


def test_what_was_pickled_is_not_kept() -> None:
    obj = Registered(1)
    import weakref

    gone = weakref.ref(obj)
    _core.ExtentSender.lay_out(ForkingPickler, [obj, np.arange(float(LARGE))])
    del obj
    assert gone() is None


def test_an_array_that_is_sent_can_be_resized_afterwards() -> None:
    sender = _core.ExtentSender()
    data = bytearray(MEGABYTE)
    index = send(sender, data)
    data.extend(b"more")
    assert len(here(sender).receive(index)) == MEGABYTE


def test_threads_share_the_pickler() -> None:
    sender = _core.ExtentSender()
    receiver = here(sender)
    bad = []

    def work(number: int) -> None:
        for i in range(50):
            obj = [number, i, "x" * number, np.full(LARGE, number, dtype=np.uint8)]
            other = receiver.receive(send(sender, obj))
            if other[:3] != obj[:3] or not (other[3] == number).all():
                bad.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not bad
    assert sender.lent == 0


def test_references_are_good_once() -> None:
    sender = _core.ExtentSender()
    receiver = here(sender)
    index = send(sender, b"x" * MEGABYTE)
    receiver.receive(index)
    for wrong in (index, index + 1, 2**32 - 1, 0):
        with pytest.raises(RuntimeError):
            receiver.receive(wrong)
    index = send(sender, b"x" * MEGABYTE)
    assert sender.discard(index)
    assert not sender.discard(index)
    with pytest.raises(RuntimeError):
        receiver.receive(index)


@pytest.mark.parametrize("seed", range(20))
def test_damaged_messages_are_errors(seed: int) -> None:
    chance = random.Random(seed)
    message = bytearray(
        _core.ExtentSender.lay_out(ForkingPickler, [np.arange(float(LARGE)), "text"])
    )
    for at in range(40):  # the header: all that is not the pickler's business
        damaged = bytearray(message)
        damaged[at] ^= 1 << chance.randrange(8)
        try:
            _core.ExtentReceiver.read(bytes(damaged))
        except Exception as exc:
            assert isinstance(exc, (RuntimeError, pickle.UnpicklingError, ValueError, EOFError))
    for length in range(0, 200, 7):
        with pytest.raises(Exception):  # noqa: B017
            _core.ExtentReceiver.read(bytes(message[:length]))


def test_no_room_is_not_an_error() -> None:
    sender = _core.ExtentSender(entries=2, limit=4 * MEGABYTE)
    receiver = _core.ExtentReceiver(os.dup(sender.fd), 0, entries=2)
    first = sender.send(ForkingPickler, b"x" * (10 * MEGABYTE))
    assert sender.send(ForkingPickler, b"small") is None
    receiver.receive(first)
    assert sender.send(ForkingPickler, b"small") is not None
    assert sender.send(ForkingPickler, b"small") is not None
    assert sender.send(ForkingPickler, b"small") is None


def test_receivers_that_keep_much_are_given_copies() -> None:
    sender = _core.ExtentSender(entries=16)
    receiver = _core.ExtentReceiver(os.dup(sender.fd), 0, entries=16)
    kept = []
    for number in range(40):
        index = sender.send(ForkingPickler, np.full(MEGABYTE, number, dtype=np.uint8))
        kept.append(receiver.receive(index))
    assert all((array == number).all() for number, array in enumerate(kept))
    assert 0 < sender.lent < 12 * MEGABYTE
    del kept
    assert sender.lent == 0


def test_idle_memory_goes_back_to_the_system() -> None:
    sender = _core.ExtentSender(idle=4 * MEGABYTE)
    receiver = here(sender)
    indices = [send(sender, b"x" * MEGABYTE) for _ in range(16)]
    assert sender.resident >= 16 * MEGABYTE
    for index in indices:
        receiver.receive(index)
    assert sender.lent == 0
    assert sender.resident <= 6 * MEGABYTE
    sender.trim()
    assert sender.resident < MEGABYTE


def test_no_memory_is_an_error_and_not_a_signal(ctx: Any) -> None:
    process = ctx.Process(target=_send_without_room)
    process.start()
    process.join(30)
    assert process.exitcode == 0


def _send_without_room() -> None:
    import resource

    sender = _core.ExtentSender()
    receiver = here(sender)
    send(sender, b"x" * MEGABYTE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limit = 2 * MEGABYTE
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    with pytest.raises(OSError):
        sender.send(ForkingPickler, b"x" * (4 * MEGABYTE))
    assert receiver.receive(send(sender, [1, 2])) == [1, 2]


def test_little_address_space_is_enough(ctx: Any) -> None:
    process = ctx.Process(target=_send_with_little_address_space)
    process.start()
    process.join(30)
    assert process.exitcode == 0


def _send_with_little_address_space() -> None:
    import resource

    sender = _core.ExtentSender()
    receiver = here(sender)
    array = np.ones(20 * MEGABYTE, dtype=np.uint8)
    with open("/proc/self/statm") as statm:
        used = int(statm.read().split()[0]) * 4096
    limit = used + 70 * MEGABYTE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for _ in range(8):
        assert (receiver.receive(send(sender, array)) == 1).all()


# ---- with other processes ----


def test_arrays_are_private_to_their_receiver(ctx: Any) -> None:
    sender = _core.ExtentSender()
    peers = [Peer(ctx, sender, holder, add_up_and_change) for holder in range(2)]
    for size in (100, LARGE, MEGABYTE, 4 * MEGABYTE):
        array = np.ones(size)
        for peer in peers * 2:
            assert peer.ask(send(sender, array)) == size
        assert (array == 1).all()
    assert sender.lent == 0
    for peer in peers:
        peer.end()


def test_a_killed_receiver_gives_everything_back(ctx: Any) -> None:
    sender = _core.ExtentSender()
    alive = Peer(ctx, sender, 1, keep)
    alive.ask(send(sender, np.ones(MEGABYTE)))
    held = sender.lent
    for _ in range(3):
        dead = Peer(ctx, sender, 2, keep)
        for number in range(5):
            assert dead.ask(send(sender, np.ones(MEGABYTE))) == number + 1
        assert sender.holders() == [1, 2]
        dead.kill()
        on_its_way = send(sender, b"x" * MEGABYTE)
        sender.reclaim(2)
        assert sender.holders() == [1]
        assert sender.discard(on_its_way)
        assert sender.lent == held
    alive.end()


def _send_until_killed(conn: Any) -> None:
    sender = _core.ExtentSender()
    send_handle(conn, sender.fd, os.getppid())
    number = 0
    while True:
        conn.send((number, sender.send(ForkingPickler, np.full(MEGABYTE, number % 251, np.uint8))))
        number += 1


def test_what_has_arrived_outlives_its_sender(ctx: Any) -> None:
    conn, other = ctx.Pipe()
    process = ctx.Process(target=_send_until_killed, args=(other,))
    process.start()
    other.close()
    receiver = _core.ExtentReceiver(recv_handle(conn), 0)
    arrays = {}
    for _ in range(20):
        number, index = conn.recv()
        arrays[number] = receiver.receive(index)
    assert conn.poll(30)
    process.kill()
    process.join()
    late = conn.recv()[1]  # on its way when it died
    conn.close()
    assert receiver.receive(late).size == MEGABYTE
    del receiver
    assert all((array == number % 251).all() for number, array in arrays.items())


def _look_at(array: Any, conn: Any) -> None:
    while (number := conn.recv()) is not None:
        conn.send(bool((array == number).all()))


def test_a_forked_child_keeps_the_arrays_that_it_inherited() -> None:
    import billiard

    ctx = billiard.get_context("fork")
    sender = _core.ExtentSender()
    receiver = here(sender)
    before = receiver.receive(send(sender, np.full(4 * MEGABYTE, 1, np.uint8)))
    conn, other = ctx.Pipe()
    process = ctx.Process(target=_look_at, args=(before, other))
    process.start()
    other.close()
    del before, process._args
    for number in range(2, 6):  # what is mapped after the fork is used again
        assert (
            receiver.receive(send(sender, np.full(4 * MEGABYTE, number, np.uint8))) == number
        ).all()
        conn.send(1)
        assert conn.recv()
    assert 0 < sender.lent < 8 * MEGABYTE
    conn.send(None)
    process.join()
    conn.close()
    deadline = time.monotonic() + 10
    while sender.lent and time.monotonic() < deadline:
        receiver.receive(send(sender, None))  # it looks again from time to time
    assert sender.lent == 0


def _use_what_is_the_parents(sender: Any, receiver: Any, kept: list[Any], index: int) -> None:
    assert sender.send(ForkingPickler, b"x") is None
    sender.reclaim(0)
    assert not sender.discard(index)
    with pytest.raises(RuntimeError):
        receiver.receive(index)
    kept.clear()


def test_a_forked_child_cannot_use_what_is_its_parents() -> None:
    import billiard

    sender = _core.ExtentSender()
    receiver = here(sender)
    kept = [receiver.receive(send(sender, np.ones(MEGABYTE)))]
    index, lent = send(sender, b"x"), sender.lent
    args = (sender, receiver, kept, index)
    process = billiard.get_context("fork").Process(target=_use_what_is_the_parents, args=args)
    process.start()
    process.join()
    assert process.exitcode == 0
    assert sender.lent == lent
    assert receiver.receive(index) == b"x"
    assert (kept[0] == 1).all()


def test_a_receiver_that_ends_lets_the_sender_reclaim(ctx: Any) -> None:
    sender = _core.ExtentSender()
    peer = Peer(ctx, sender, 7, keep)
    peer.ask(send(sender, np.ones(MEGABYTE)))
    peer.end()
    sender.reclaim(7)
    assert sender.lent == 0 and sender.holders() == []


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_receivers_killed_at_random_instants(method: str) -> None:
    """What the living hold stays as it is, and nothing is lost for good."""
    sender = _core.ExtentSender()
    import billiard

    ctx = billiard.get_context(method)
    chance = random.Random(1)
    rounds = 12 if method == "fork" else 4
    alive = Peer(ctx, sender, 0, keep_or_forget)
    number = 0

    def array() -> Any:
        nonlocal number
        number += 1
        return np.full(chance.choice([LARGE, MEGABYTE, 2 * MEGABYTE]), number % 251, np.uint8)

    for _ in range(rounds):
        victim = Peer(ctx, sender, 1, keep_or_forget)
        victim.conn.send(send(sender, array()))
        assert victim.answer()
        end = time.monotonic() + chance.uniform(0, 0.03)
        waiting = []
        while time.monotonic() < end:
            waiting.append(send(sender, array()))
            victim.conn.send(waiting[-1])
            assert alive.ask(send(sender, array()))
            while victim.conn.poll(0):
                assert victim.conn.recv()
                waiting.pop(0)
        victim.kill()
        sender.reclaim(1)
        for index in waiting:
            sender.discard(index)
        assert 1 not in sender.holders()
        for _ in range(4):
            assert alive.ask(send(sender, array()))
    alive.end()
    sender.reclaim(0)
    assert sender.lent == 0


@pytest.mark.stress
def test_receivers_killed_for_a_while() -> None:
    end = time.monotonic() + float(os.environ.get("BILLIARD_STRESS_SECONDS", "5"))
    while time.monotonic() < end:
        test_receivers_killed_at_random_instants("fork")
