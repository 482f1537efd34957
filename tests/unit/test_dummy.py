"""billiard.dummy: the interface on threads."""

from __future__ import annotations

import subprocess
import sys
import threading
import weakref
from pathlib import Path

import pytest

import billiard.dummy
from billiard import dummy
from billiard.dummy import connection

ROOT = Path(billiard.__file__).parents[1]


def test_importing_dummy_brings_its_connection_module() -> None:
    code = "import billiard.dummy; billiard.dummy.connection.Pipe()"
    env = {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env=env)


def test_process_runs_its_target_and_has_an_exit_code() -> None:
    seen: list[object] = []
    gate = threading.Event()

    def work(a: int, b: int) -> None:
        gate.wait(60)
        seen.append((a, b, dummy.current_process()))

    process = dummy.Process(target=work, args=(1,), kwargs={"b": 2}, name="worker")
    assert process.exitcode is None and process.name == "worker"
    process.start()
    assert process.exitcode is None
    assert process in dummy.active_children()
    gate.set()
    process.join(60)
    assert seen == [(1, 2, process)]
    assert process.exitcode == 0
    assert process not in dummy.active_children()


def test_process_can_be_daemonic() -> None:
    assert dummy.Process(daemon=True).daemon and not dummy.Process().daemon


def test_process_is_started_only_by_the_thread_that_made_it() -> None:
    process = dummy.Process(target=print)
    errors: list[BaseException] = []

    def start() -> None:
        try:
            process.start()
        except AssertionError as exc:
            errors.append(exc)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert len(errors) == 1


def test_any_thread_can_have_children() -> None:
    counts: list[int] = []

    def parent() -> None:
        counts.append(len(dummy.active_children()))
        gate = threading.Event()
        child = dummy.Process(target=gate.wait, args=(10,))
        child.start()
        counts.append(len(dummy.active_children()))
        gate.set()
        child.join()
        counts.append(len(dummy.active_children()))

    thread = threading.Thread(target=parent)
    thread.start()
    thread.join()
    assert counts == [0, 1, 0]


@pytest.mark.parametrize("name", ["notify_all", "notify"])
def test_condition_wakes_its_waiters(name: str) -> None:
    condition = dummy.Condition()
    ready = threading.Semaphore(0)

    def wait() -> None:
        with condition:
            ready.release()
            condition.wait(60)

    threads = [dummy.Process(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
        ready.acquire()
    with condition:
        if name == "notify":
            condition.notify(3)
        else:
            condition.notify_all()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def test_barrier_and_the_other_primitives_are_there() -> None:
    barrier = dummy.Barrier(2)
    other = dummy.Process(target=barrier.wait, args=(10,))
    other.start()
    assert barrier.wait(60) in (0, 1)
    other.join()
    for name in dummy.__all__:
        assert getattr(dummy, name) is not None
    queue: dummy.JoinableQueue[int] = dummy.JoinableQueue()
    queue.put(1)
    assert queue.get() == 1
    queue.task_done()
    queue.join()


def test_manager_is_the_module() -> None:
    manager = dummy.Manager()
    assert manager.dict(a=1) == {"a": 1} and manager.list("ab") == ["a", "b"]
    assert repr(manager.Namespace(b=1, a="x", _c=3)) == "Namespace(a='x', b=1)"
    assert manager.Array("i", [1, 2]).tolist() == [1, 2]
    value = manager.Value("i", 3)
    value.value += 1
    assert value.value == 4 and repr(value) == "<Value('i', 4)>"
    assert manager.shutdown() is None and dummy.freeze_support() is None


def test_pipe_of_dummy_is_a_real_pipe() -> None:
    a, b = dummy.Pipe()
    with a, b:
        a.send([1])
        assert b.recv() == [1]


# ---- dummy.connection ----


def test_connection_passes_the_object_itself() -> None:
    a, b = connection.Pipe()
    thing = threading.Event()
    with a, b:
        a.send(thing)
        assert b.poll() and b.recv() is thing
        b.send_bytes(b"x")
        assert a.recv_bytes() == b"x"


def test_poll_waits_for_as_long_as_told() -> None:
    a, b = connection.Pipe()
    assert not b.poll() and not b.poll(0.01) and not b.poll(-1)
    sender = threading.Timer(0.02, a.send, (1,))
    sender.start()
    assert b.poll(None)
    assert b.poll(60)
    sender.join()


def test_listener_accepts_clients() -> None:
    with connection.Listener() as listener:
        answers: list[int] = []

        def serve() -> None:
            with listener.accept() as server:
                answers.append(server.recv())
                server.send(answers[0] + 1)

        thread = threading.Thread(target=serve)
        thread.start()
        assert listener.address is not None
        client = connection.Client(listener.address)
        client.send(1)
        assert client.recv() == 2
        thread.join()
    assert listener.address is None
    with pytest.raises(OSError, match="closed"):
        listener.accept()


def test_a_finished_process_is_not_kept_alive() -> None:
    process = dummy.Process(target=int)
    process.start()
    process.join()
    ref = weakref.ref(process)
    del process
    assert ref() is None
