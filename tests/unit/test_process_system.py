"""Starting processes where the system has no more of something, on old kernels, beside threads."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import resource
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from process_tasks import ended, nothing
from scripts import run, run_file

import billiard

# ---- the system has no more ----


@contextlib.contextmanager
def limit(kind: int, value: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))


def test_no_descriptors_left_is_an_error_of_start(ctx: Any) -> None:
    ended(ctx, nothing)  # imports
    gc.collect()
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    taken = []
    with limit(resource.RLIMIT_NOFILE, highest + 2):
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        child = ctx.Process(target=nothing)
        try:
            with pytest.raises(OSError) as caught:
                child.start()
        finally:
            for fd in taken:
                os.close(fd)
    assert caught.value.errno == errno.EMFILE
    assert child not in billiard.active_children()
    assert (child.pid, child.exitcode) == (None, None)
    child.start()  # now there is room
    child.join()
    assert child.exitcode == 0


@pytest.mark.skipif(os.getuid() != 0, reason="has to become another user")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_no_processes_left_is_an_error_of_start(method: str, tmp_path: Path) -> None:
    source = """
        import errno, os, resource, sys
        import billiard, billiard.popen_fork, billiard.popen_spawn_posix, billiard.reduction
        process = billiard.get_context("fork").Process(target=int)  # imports what is needed
        process.start()
        process.join()
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
        os.setgroups([])
        os.setgid(64321)
        os.setuid(64321)
        before = os.listdir("/proc/self/fd")
        try:
            billiard.get_context(sys.argv[1]).Process(target=print).start()
        except OSError as exc:
            print(errno.errorcode[exc.errno])
        assert os.listdir("/proc/self/fd") == before
        assert billiard.active_children() == []
    """
    assert run_file(tmp_path, source, method).stdout == "EAGAIN\n"


# ---- kernels and interpreters ----


def test_a_kernel_without_pidfds(tmp_path: Path) -> None:
    """A seccomp filter answers ENOSYS to pidfd_open, as old kernels do."""
    if os.uname().machine != "x86_64":
        pytest.skip("the filter has the numbers of x86-64")
    source = """
        import ctypes, os, signal, struct, sys, threading, time
        load, equal, back = 0x20, 0x15, 0x06
        program = b"".join(struct.pack("HBBI", *line) for line in [
            (load, 0, 0, 0), (equal, 0, 1, 434), (back, 0, 0, 0x00050000 | 38),
            (back, 0, 0, 0x7FFF0000)])
        lines = ctypes.create_string_buffer(program)
        class Program(ctypes.Structure):
            _fields_ = [("len", ctypes.c_ushort), ("lines", ctypes.c_void_p)]
        libc = ctypes.CDLL(None, use_errno=True)
        def refuse():
            filter = Program(4, ctypes.addressof(lines))
            assert libc.prctl(38, 1, 0, 0, 0) == 0
            assert libc.prctl(22, 2, ctypes.byref(filter), 0, 0) == 0
        if __name__ == "__main__":
            refuse()
            import billiard
            from billiard.connection import wait
            for method in billiard.get_all_start_methods():
                ctx = billiard.get_context(method)
                one = ctx.Process(target=sys.exit, args=(3,))
                one.start()
                assert "pidfd" not in os.readlink(f"/proc/self/fd/{one.sentinel}")
                assert wait([one.sentinel], 30) == [one.sentinel]
                one.join()
                two = ctx.Process(target=time.sleep, args=(60,))
                two.start()
                two.join(0.05)
                assert two.exitcode is None and wait([two.sentinel], 0) == []
                two.kill()
                two.join(30)
                three = ctx.Process(target=time.sleep, args=(0.05,))
                three.start()
                three.join()
                print(method, one.exitcode, two.exitcode, three.exitcode, flush=True)
    """
    expected = [f"{method} 3 -9 0" for method in ("fork", "spawn", "forkserver")]
    assert run_file(tmp_path, source).stdout.splitlines() == expected


def test_processes_are_ours_although_the_program_closed_their_descriptors(tmp_path: Path) -> None:
    source = """
        import os, time, billiard
        def closed(method, seconds):
            process = billiard.get_context(method).Process(target=time.sleep, args=(seconds,))
            process.start()
            os.closerange(3, 100)
            return process
        if __name__ == "__main__":
            for method in ("fork", "spawn"):
                process = closed(method, 60)
                assert process.is_alive()
                process.join(0.05)
                assert process.is_alive()
                process.terminate()
                process.join(30)
                assert process.exitcode == -15, process.exitcode
                process = closed(method, 0.1)
                process.join()
                assert process.exitcode == 0, process.exitcode
            # Another file gets the number: it is not waited for, and not closed.
            process = billiard.get_context("fork").Process(target=time.sleep, args=(60,))
            process.start()
            number = process.sentinel
            os.close(number)
            files = [open("/dev/null", "w")]
            while files[-1].fileno() != number:
                files.append(open("/dev/null", "w"))
            process.kill()
            process.join()
            assert process.exitcode == -9, process.exitcode
            process.close()
            del process
            files[-1].write("still open")
            files[-1].flush()
    """
    run_file(tmp_path, source)


def test_a_parent_with_threads_starts_processes_without_hangs_and_warnings(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys, threading, time, billiard
            going = True
            def work():
                while going:
                    print(sum(range(1000)), end="", file=null)
                    time.sleep(0.001)
            if __name__ == "__main__":
                null = open("/dev/null", "w")
                threads = [threading.Thread(target=work) for _ in range(8)]
                for thread in threads:
                    thread.start()
                for method, count in (("fork", 100), ("forkserver", 100), ("spawn", 10)):
                    ctx = billiard.get_context(method)
                    for number in range(count):
                        process = ctx.Process(target=time.sleep, args=(number % 2 / 500,))
                        process.start()
                        if number % 3 == 0:
                            process.kill()
                        process.join(60)
                        assert process.exitcode in ((-9, 0) if number % 3 == 0 else (0,))
                going = False
                for thread in threads:
                    thread.join()
                null.close()
            """
        )
    )
    done = run("-W", "error", script)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_fork_is_audited(tmp_path: Path) -> None:
    source = """
        import sys, billiard
        events = []
        sys.addaudithook(lambda event, args: events.append(event) if event == "os.fork" else None)
        process = billiard.get_context("fork").Process(target=print)
        process.start()
        process.join()
        assert events == ["os.fork"]
    """
    run_file(tmp_path, source)
