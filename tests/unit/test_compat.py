"""billiard.compat: small system calls."""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys
import tempfile
from pathlib import Path
from unittest.mock import patch

import numpy
import pytest

from billiard import compat


def in_child(function: object) -> int:
    """Run something in a forked child; its exit status is what the function returns."""
    pid = os.fork()
    if not pid:
        try:
            os._exit(function())  # type: ignore[operator]
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_close_open_fds_closes_everything_but_the_kept() -> None:
    def child() -> int:
        a, b = os.pipe()
        high = os.dup2(a, 900)
        with tempfile.TemporaryFile() as kept_file:
            compat.close_open_fds([b, None, kept_file, b])
            return not (
                is_open(b)
                and is_open(kept_file.fileno())
                and not any(map(is_open, (0, 1, 2, a, high)))
            )

    assert in_child(child) == 0


def test_close_open_fds_works_where_descriptors_are_not_listed() -> None:
    def child() -> int:
        a, b = os.pipe()
        with patch.object(compat, "_open_fds", return_value=None):
            compat.close_open_fds([0, b])
        return not (is_open(0) and is_open(b) and not any(map(is_open, (1, 2, a))))

    assert in_child(child) == 0


def test_open_fds_lists_this_process() -> None:
    with tempfile.TemporaryFile() as file:
        assert file.fileno() in (compat._open_fds() or ())


def test_open_fds_is_none_where_the_listing_is_missing_or_incomplete() -> None:
    with patch.object(compat, "_FD_DIR", "/nowhere"):
        assert compat._open_fds() is None
        assert not compat._dev_fd_is_fdescfs()
    with patch.object(sys, "platform", "freebsd14"), patch.object(compat, "_FD_DIR", "/dev"):
        assert compat._open_fds() is None


def test_send_offset_writes_the_rest() -> None:
    r, w = os.pipe()
    assert compat.send_offset(w, memoryview(b"abcdef"), 4) == 2
    assert os.read(r, 100) == b"ef"
    compat.setblocking(w, False)
    with pytest.raises(BlockingIOError) as caught:
        while True:
            compat.send_offset(w, memoryview(b"x" * 65536), 0)
    assert caught.value.errno == errno.EAGAIN
    os.close(r)
    os.close(w)


def test_blocking_can_be_switched() -> None:
    r, w = os.pipe()
    assert compat.isblocking(r)
    compat.setblocking(r, 0)
    assert not compat.isblocking(r)
    assert compat.isblocking(w)
    compat.setblocking(r, 1)
    assert compat.isblocking(r)
    os.close(r)
    os.close(w)


def test_maybe_fileno() -> None:
    assert compat.maybe_fileno(7) == 7
    assert compat.maybe_fileno(numpy.int64(7)) == 7
    assert compat.maybe_fileno(object()) is None
    with open(os.devnull) as file:
        assert compat.maybe_fileno(file) == file.fileno()
    assert compat.maybe_fileno(file) is None


def test_uniq_keeps_the_order() -> None:
    assert list(compat.uniq([3, 1, 3, 2, 1])) == [3, 1, 2]


def test_get_errno() -> None:
    assert compat.get_errno(OSError(4, "x")) == 4
    assert compat.get_errno(ValueError()) == 0


def test_get_fdmax() -> None:
    assert compat.get_fdmax() == os.sysconf("SC_OPEN_MAX")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    for failure in (ValueError, OSError, KeyError):
        with patch("os.sysconf", side_effect=failure):
            assert compat.get_fdmax(5) == (5 if hard == resource.RLIM_INFINITY else hard)


def test_mem_rss_is_in_kib() -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert peak <= compat.mem_rss() < 2 * peak + 10_000
    with patch.object(sys, "platform", "darwin"):
        assert compat.maxrss_to_kb(2048) == 2.0


def test_spawnv_passfds_passes_just_these(tmp_path: Path) -> None:
    r, w = os.pipe()
    other = os.dup(r)
    os.set_inheritable(other, True)
    out = tmp_path / "out"
    code = (
        "import os\n"
        "found = []\n"
        "for fd in range(3, 1000):\n"
        "    try: os.fstat(fd); found.append(fd)\n"
        "    except OSError: pass\n"
        f"open({str(out)!r}, 'w').write(repr(found))\n"
    )
    pid = compat.spawnv_passfds(sys.executable, [sys.executable, "-c", code], [w, r])
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert out.read_text() == repr(sorted([r, w]))
    for fd in (r, w, other):
        os.close(fd)


def test_spawnv_passfds_says_that_the_program_does_not_exist() -> None:
    with pytest.raises(FileNotFoundError) as caught:
        compat.spawnv_passfds("/no/such/program", ["x"], [])
    assert caught.value.errno == errno.ENOENT
    assert caught.value.filename == "/no/such/program"


def test_spawnv_passfds_ends_with_the_programs_status() -> None:
    code = f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})"
    pid = compat.spawnv_passfds(os.fsencode(sys.executable), ["python", "-c", code], [])
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
