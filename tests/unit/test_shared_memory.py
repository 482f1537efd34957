"""billiard.shared_memory: segments and lists with a name, and who unlinks them."""

from __future__ import annotations

import errno
import gc
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing import shared_memory as theirs
from pathlib import Path
from typing import Any

import pytest

import billiard
from billiard.managers import SharedMemoryManager
from billiard.shared_memory import ShareableList, SharedMemory

ROOT = Path(billiard.__file__).parents[1]


@pytest.fixture
def segment() -> Iterator[SharedMemory]:
    made = SharedMemory(create=True, size=5000)
    yield made
    made.close()
    made.unlink()


def exists(name: str) -> bool:
    return os.path.exists(f"/dev/shm/{name}")


# ---- segments ----


def test_segment_has_a_name_a_size_and_memory(segment: SharedMemory) -> None:
    assert exists(segment.name) and not segment.name.startswith("/")
    assert segment.size == 5000 and len(segment.buf) == 5000
    assert repr(segment) == f"SharedMemory({segment.name!r}, size=5000)"
    assert bytes(segment.buf[:10]) == bytes(10)
    other = SharedMemory(segment.name)
    other.buf[:3] = b"abc"
    assert bytes(segment.buf[:3]) == b"abc"
    other.close()
    assert other.buf is None
    other.close()
    assert bytes(segment.buf[:3]) == b"abc"


def test_segment_of_a_given_name() -> None:
    name = f"billiard-test-{os.getpid()}"
    first = SharedMemory(name, create=True, size=10)
    try:
        assert first.name == name
        with pytest.raises(FileExistsError) as caught:
            SharedMemory(name, create=True, size=10)
        assert caught.value.errno == errno.EEXIST and name in str(caught.value)
    finally:
        first.close()
        first.unlink()
    with pytest.raises(FileNotFoundError):
        SharedMemory(name)
    with pytest.raises(FileNotFoundError):
        first.unlink()


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="positive"):
        SharedMemory(create=True, size=-1)
    with pytest.raises(ValueError, match="different from zero"):
        SharedMemory(create=True, size=0)
    with pytest.raises(ValueError, match="None"):
        SharedMemory()
    with pytest.raises(OSError):
        SharedMemory("a/b/c", create=True, size=1)
    with pytest.raises(ValueError, match="null"):
        SharedMemory("a\0b", create=True, size=1)


def test_more_memory_than_there_is_is_an_error_at_once() -> None:
    with pytest.raises(OSError) as caught:
        SharedMemory(f"billiard-test-big-{os.getpid()}", create=True, size=1 << 45)
    assert caught.value.errno == errno.ENOSPC
    assert not exists(f"billiard-test-big-{os.getpid()}")


def test_memory_that_is_used_cannot_be_closed_and_stays(segment: SharedMemory) -> None:
    other = SharedMemory(segment.name)
    view = other.buf[:4]
    with pytest.raises(BufferError):
        other.close()
    del other
    gc.collect()  # nothing is printed, nothing is unmapped
    view[:] = b"wxyz"
    assert bytes(segment.buf[:4]) == b"wxyz"
    view.release()


def test_segment_pickles_to_another_attachment(segment: SharedMemory) -> None:
    copy = pickle.loads(pickle.dumps(segment))
    copy.buf[0] = 5
    assert copy.name == segment.name and segment.buf[0] == 5
    copy.close()


def child(given: SharedMemory, answer: Any) -> None:
    given.buf[0] = 7
    given.close()
    made = SharedMemory(create=True, size=10)
    made.buf[0] = 9
    answer.send(made.name)
    made.close()


def test_child_attaches_and_what_it_makes_outlives_it(ctx: Any, segment: SharedMemory) -> None:
    reader, writer = ctx.Pipe(duplex=False)
    with reader, writer:
        process = ctx.Process(target=child, args=(segment, writer))
        process.start()
        name = reader.recv()
        process.join()
    assert process.exitcode == 0 and segment.buf[0] == 7
    made = SharedMemory(name)
    assert made.buf[0] == 9
    made.close()
    made.unlink()


def test_segments_are_shared_with_multiprocessing(segment: SharedMemory) -> None:
    code = (
        "import sys; from multiprocessing import shared_memory, resource_tracker\n"
        "s = shared_memory.SharedMemory(sys.argv[1]); s.buf[0] = 3; s.close()\n"
        "resource_tracker.unregister('/' + sys.argv[1], 'shared_memory')\n"
    )
    subprocess.run([sys.executable, "-c", code, segment.name], check=True, timeout=60)
    assert segment.buf[0] == 3


# ---- who unlinks ----


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_segment_of_a_killed_program_is_unlinked() -> None:
    # The tracker has its standard error too: it ends after the tracker.
    done = run(
        "import os\n"
        "from billiard.shared_memory import SharedMemory\n"
        "print(SharedMemory(create=True, size=10).name, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    name = done.stdout.strip()
    assert done.returncode == -9 and name
    assert not exists(name)
    assert "1 leaked shared_memory objects" in done.stderr and name in done.stderr


def test_segment_that_cannot_be_tracked_is_not_made() -> None:
    name = f"billiard-test\n{os.getpid()}"
    with pytest.raises(ValueError, match="line end"):
        SharedMemory(name, create=True, size=10)
    assert not exists(name)


def test_attaching_without_tracking_leaves_the_segment_alone(segment: SharedMemory) -> None:
    code = (
        "import sys; from billiard.shared_memory import SharedMemory\n"
        "SharedMemory(sys.argv[1], track={}).close()\n"
        "print('billiard.spawn' in sys.modules)\n"
    )
    done = run(code.format(False), segment.name)
    assert (done.stdout.strip(), done.stderr) == ("False", "")  # and no tracker was started
    assert exists(segment.name)


def test_attaching_with_tracking_ends_the_segment_with_the_program() -> None:
    made = SharedMemory(create=True, size=10, track=False)
    code = (
        "import sys; from billiard.shared_memory import SharedMemory\n"
        "SharedMemory(sys.argv[1]).close()\n"
    )
    done = run(code, made.name)
    assert "leaked shared_memory" in done.stderr and not exists(made.name)
    made.close()


def test_untracked_segment_stays_untracked_in_the_processes_that_it_is_sent_to(
    ctx: Any, segment: SharedMemory
) -> None:
    code = (
        "import sys, billiard; from billiard.shared_memory import SharedMemory\n"
        "segment = SharedMemory(sys.argv[1], track=False)\n"
        "child = billiard.get_context(sys.argv[2]).Process(target=print, args=(segment,))\n"
        "child.start(); child.join()\n"
    )
    done = run(code, segment.name, ctx.get_start_method())
    # A tracker would have the program's standard error until it has done its work.
    assert (done.stdout.strip(), done.stderr) == (repr(segment), "")
    assert exists(segment.name)


def test_segments_of_a_manager_end_with_it(ctx: Any) -> None:
    with SharedMemoryManager(ctx=ctx) as manager:
        made = manager.SharedMemory(100)
        numbers = manager.ShareableList(range(3))
        names = [made.name, numbers.shm.name]
        assert all(map(exists, names))
        assert numbers[2] == 2
        assert sorted(manager._request("list_segments")) == sorted(names)
        manager._request("release_segment", (names[0],))
        assert not exists(names[0])
        made.close()
        numbers.shm.close()
    assert not any(map(exists, names))


def test_segments_of_a_killed_manager_are_unlinked_by_the_tracker() -> None:
    done = run(
        "import os\n"
        "from billiard.managers import SharedMemoryManager\n"
        "m = SharedMemoryManager(); m.start()\n"
        "print(m.SharedMemory(10).name, flush=True)\n"
        "m._process.kill(); m._process.join(); m.shutdown()\n"
    )
    assert done.returncode == 0 and not exists(done.stdout.strip())


# ---- lists ----


@pytest.fixture
def items() -> Iterator[ShareableList]:
    made = ShareableList(["héé" * 4, b"bytes", -273, 1.5, None, True, 42])
    yield made
    made.shm.close()
    made.shm.unlink()


def test_list_holds_its_items(items: ShareableList) -> None:
    assert list(items) == ["héé" * 4, b"bytes", -273, 1.5, None, True, 42]
    assert len(items) == 7 and items[-1] == 42
    assert items.format == "24s8sqdxxxxxx?xxxxxxxx?q"
    assert items.count(42) == 1 and items.index(None) == 4
    with pytest.raises(ValueError, match="not in"):
        items.index("nothing")
    for position in (7, -8):
        with pytest.raises(IndexError):
            items[position]
        with pytest.raises(IndexError):
            items[position] = 1
    assert repr(items).startswith("ShareableList(['héé")


def test_list_items_can_be_replaced_by_what_fits(items: ShareableList) -> None:
    items[0] = "é" * 12
    items[1] = b"12345678"
    items[2] = 2.5
    items[3] = "x"
    items[4] = 1
    assert list(items)[:5] == ["é" * 12, b"12345678", 2.5, "x", 1]
    items[0] = 5
    assert items[0] == 5
    with pytest.raises(ValueError, match="exceeds"):
        items[1] = b"123456789"
    with pytest.raises(KeyError):
        items[2] = object()  # type: ignore[assignment]
    assert items[2] == 2.5


def test_list_that_cannot_be_made_leaves_nothing() -> None:
    import struct

    with pytest.raises(struct.error):
        ShareableList([1 << 70])
    with pytest.raises(KeyError):
        ShareableList([object()])  # type: ignore[list-item]


def test_list_is_found_by_name_and_pickles(items: ShareableList) -> None:
    other = ShareableList(name=items.shm.name)
    copy = pickle.loads(pickle.dumps(items))
    other[2] = 11
    assert items[2] == 11 and copy[2] == 11 and list(copy) == list(items)
    other.shm.close()
    copy.shm.close()
    empty = ShareableList([])
    assert len(empty) == 0 and list(empty) == [] and empty.format == ""
    empty.shm.close()
    empty.shm.unlink()


def test_list_has_multiprocessing_s_layout(items: ShareableList) -> None:
    other = theirs.ShareableList(name=items.shm.name)
    assert list(other) == list(items) and other.format == items.format
    other[6] = 43
    assert items[6] == 43
    other.shm.close()
    from multiprocessing import resource_tracker

    resource_tracker.unregister("/" + items.shm.name, "shared_memory")
    resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]
