"""Blocks of shared memory: who sees them, and when their bytes are used again."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import billiard
from billiard import heap

MIB = 1 << 20
ROOT = Path(billiard.__file__).parents[1]


def run(code: str) -> str:
    """What a program of its own prints: its arena is its own too."""
    env = dict(os.environ, PYTHONPATH=str(ROOT))
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def free_in_kib() -> int:
    """Shared memory that this process has touched."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssShmem:")[1].split()[0])


def block_files() -> list[str]:
    links = (os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd"))
    return [link for link in links if os.path.lexists(link) and "block" in os.readlink(link)]


@pytest.mark.parametrize("size", [0, 1, 64, 65, 5000, MIB - 1, MIB, 3 * MIB + 5])
def test_a_block_has_the_size_that_was_asked_for_and_is_zero(size: int) -> None:
    wrapper = heap.BufferWrapper(size)
    view = wrapper.create_memoryview()
    assert wrapper.get_size() == len(view) == size
    assert not any(view)
    view[:] = b"\xff" * size
    assert heap.BufferWrapper(size).create_memoryview() != view or size == 0


@pytest.mark.parametrize("size", [-1, -(2**63), sys.maxsize])
def test_a_size_that_is_none_is_an_error(size: int) -> None:
    with pytest.raises(AssertionError):
        heap.BufferWrapper(size)


def test_more_than_the_machine_has_is_an_error_at_once() -> None:
    with pytest.raises(OSError, match="memory") as caught:
        heap.BufferWrapper(1 << 60)
    assert caught.value.errno == 12


def test_blocks_do_not_overlap() -> None:
    wrappers = [heap.BufferWrapper(n * 7) for n in range(300)]
    ranges = sorted((w.get_address(), w.get_address() + w.get_size()) for w in wrappers)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(ranges))


def test_a_view_keeps_the_memory() -> None:
    view = heap.BufferWrapper(2 * MIB).create_memoryview()
    gc.collect()
    view[-1] = 1
    assert view[-1] == 1


def test_big_blocks_take_memory_when_they_are_touched_and_go_with_their_last_user() -> None:
    before, files = free_in_kib(), block_files()
    wrapper = heap.BufferWrapper(200 * MIB)
    assert free_in_kib() - before < 1024
    wrapper.create_memoryview()[100 * MIB] = 1
    assert len(block_files()) == len(files) + 1
    del wrapper
    assert block_files() == files


def test_what_is_dropped_is_used_again() -> None:
    code = """
import billiard, os
def known(): return sum("memfd:billiard" in l for l in open("/proc/self/maps"))
keep = [billiard.Lock() for _ in range(10)]
first = known()
for _ in range(20000):
    billiard.Lock(); billiard.Value("i", 0); billiard.Event(); billiard.RawArray("d", 100)
print(known() - first)
"""
    assert run(code) == "0"


def test_what_was_dropped_around_forks_is_used_again_when_the_children_are_gone() -> None:
    code = """
import billiard, os
def known(): return sum("memfd:billiard" in l for l in open("/proc/self/maps"))
sizes = []
for _ in range(60):
    locks = [billiard.Lock() for _ in range(100)]
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    del locks
    sizes.append(known())
print(sizes[-1] - sizes[0])
"""
    assert run(code) == "0"


def test_a_child_keeps_a_lock_that_its_parent_has_dropped() -> None:
    code = """
import billiard, os, time
lock = billiard.Lock()
lock.acquire()
r, w = os.pipe()
done_r, done_w = os.pipe()
if os.fork() == 0:
    # The grandchild goes on when its own parent is gone.
    if os.fork() == 0:
        os.read(r, 1)
        ok = not lock.acquire(False)
        lock.release()
        os.write(done_w, b"1" if ok and lock.acquire(False) else b"0")
    os._exit(0)
os.wait()
del lock
others = [billiard.Lock() for _ in range(5000)]   # all free: one in the same place would show
os.write(w, b"x")
print(os.read(done_r, 1).decode(), all(l.acquire(False) for l in others))
"""
    assert run(code) == "1 True"


def use_late(lock: Any, go: Any, done: Any) -> None:
    go.recv()
    done.send(lock.acquire(False))
    lock.release()
    done.send(lock.acquire(False))


def test_a_child_keeps_what_it_was_given_however_it_was_started(ctx: Any) -> None:
    lock = ctx.Lock()
    lock.acquire()
    go, go_on = ctx.Pipe(False)
    result, done = ctx.Pipe(False)
    process = ctx.Process(target=use_late, args=(lock, go, done))
    process.start()
    process._args = ()
    del lock
    gc.collect()
    others = [ctx.Lock() for _ in range(3000)]
    go_on.send(0)
    assert result.recv() is False
    assert result.recv() is True
    process.join()
    assert all(other.acquire(False) for other in others)
    for connection in (go, go_on, result, done):
        connection.close()


def write_at(wrappers: list[heap.BufferWrapper], where: int) -> None:
    for wrapper in wrappers:
        wrapper.create_memoryview()[where] = 7


def test_blocks_are_shared_with_children(ctx: Any) -> None:
    wrappers = [heap.BufferWrapper(size) for size in (100, 5000, 2 * MIB)]
    process = ctx.Process(target=write_at, args=(wrappers, 99))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert all(wrapper.create_memoryview()[99] == 7 for wrapper in wrappers)


def test_children_pass_on_what_they_were_given(ctx: Any) -> None:
    wrapper = heap.BufferWrapper(100)
    process = ctx.Process(target=pass_on, args=(wrapper, ctx.get_start_method()))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert wrapper.create_memoryview()[3] == 7


def pass_on(wrapper: heap.BufferWrapper, method: str) -> None:
    ctx = billiard.get_context(method)
    process = ctx.Process(target=write_at, args=([wrapper], 3))
    process.start()
    process.join()
    assert process.exitcode == 0


def test_a_program_that_closes_all_descriptors_keeps_its_memory_and_closes_no_others() -> None:
    code = """
import billiard, os, errno
lock = billiard.Lock()
array = billiard.RawArray("d", 1_000_000)
os.closerange(3, 1000)
mine = [os.open("/dev/null", os.O_RDONLY) for _ in range(20)]
with lock: array[5] = 1.0
del array
for fd in mine: os.fstat(fd)
try:
    billiard.get_context("spawn").Process(target=print, args=(lock,)).start()
except OSError as error:
    print(errno.errorcode[error.errno])
"""
    assert run(code) == "EBADF"


def test_arenas_and_heaps_of_one_s_own(ctx: Any) -> None:
    arena = heap.Arena(8192)
    arena.buffer[5] = 7
    again = heap.Arena(8192, os.dup(arena.fd))
    assert again.buffer[5] == 7
    private = heap.Heap()
    block = private.malloc(100)
    assert len(memoryview(block)) == 100
    private.free(block)
    with pytest.raises(KeyError):
        private.free(block)


def fill(arena: heap.Arena) -> None:
    arena.buffer[0] = 9


def test_an_arena_reaches_children(ctx: Any) -> None:
    arena = heap.Arena(4096)
    process = ctx.Process(target=fill, args=(arena,))
    process.start()
    process.join()
    assert arena.buffer[0] == 9


@pytest.mark.stress
def test_no_kill_ever_frees_what_others_see() -> None:
    seconds = float(os.environ.get("BILLIARD_STRESS_SECONDS", "4")) / 4
    code = f"""
import billiard, os, random, signal, time
end = time.monotonic() + {seconds}
random.seed(1)
children = {{}}
locks = []
while time.monotonic() < end:
    locks += [billiard.Semaphore(n) for n in range(random.randrange(50))]
    # A child that sees some semaphores, whose values must stay; it may have a child of its own.
    pid = os.fork()
    if pid == 0:
        expected = [(lock, lock.get_value()) for lock in locks]
        if random.random() < 0.5 and os.fork():
            os._exit(0)
        while time.monotonic() < end:
            if any(lock.get_value() != value for lock, value in expected):
                os._exit(1)
            time.sleep(0.01)
        os._exit(0)
    children[pid] = time.monotonic()
    random.shuffle(locks)
    del locks[len(locks) // 2:]
    if len(children) > 20:
        pid = random.choice(list(children))
        del children[pid]
        try: os.kill(pid, signal.SIGKILL)
        except ProcessLookupError: pass
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) in (0, -signal.SIGKILL), status
for pid in children:
    assert os.waitpid(pid, 0)[1] == 0
print("ok")
"""
    assert run(code) == "ok"
    assert signal.SIGKILL
