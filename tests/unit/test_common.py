"""billiard.common: signals, exit statuses, restart limits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from billiard import common
from billiard.exceptions import RestartFreqExceeded


@pytest.fixture(autouse=True)
def flag_and_handlers() -> Iterator[None]:
    names = common.TERMSIGS_FULL
    before = {n: signal.getsignal(n) for n in map(common.signum, names) if n}
    yield
    common.clear_terminate_handler_fired()
    for number, handler in before.items():
        signal.signal(number, handler)


def run(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=30,
    )


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (0, "exitcode 0"),
        (155, "exitcode 155"),
        (None, "exitcode None"),
        (-9, "signal 9 (SIGKILL)"),
        (-1, "signal 1 (SIGHUP)"),
        (-6, "signal 6 (SIGABRT)"),
        (-1000, "signal 1000"),
    ],
)
def test_human_status(status: int | None, text: str) -> None:
    assert common.human_status(status) == text


def test_pickle_loads_takes_any_buffer() -> None:
    import pickle

    data = pickle.dumps([1, "two"])
    for buffer in (data, bytearray(data), memoryview(data)):
        assert common.pickle_loads(buffer) == [1, "two"]


def test_signum() -> None:
    assert common.signum("SIGTERM") == signal.SIGTERM
    assert common.signum("SIGNONE") is None


def test_maybe_setsignal_ignores_what_cannot_be_set() -> None:
    common.maybe_setsignal(signal.SIGKILL, signal.SIG_DFL)
    common.maybe_setsignal(100000, signal.SIG_DFL)


def test_reset_signals_makes_signals_raise_system_exit() -> None:
    assert not common.terminate_handler_fired()
    common.reset_signals()
    with pytest.raises(SystemExit) as caught:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
    assert caught.value.code == signal.SIGTERM - 256
    assert common.terminate_handler_fired()
    # A second signal would now end the process the hard way.
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    common.clear_terminate_handler_fired()
    assert not common.terminate_handler_fired()


def test_reset_signals_leaves_ignored_signals_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    common.reset_signals()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_reset_signals_full_covers_more() -> None:
    signal.signal(signal.SIGUSR2, signal.SIG_DFL)
    common.reset_signals()
    assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL
    common.reset_signals(full=True)
    assert signal.getsignal(signal.SIGUSR2) is common._shutdown_cleanup


def test_the_second_signal_ends_the_process_at_once() -> None:
    done = run(
        "import os, signal, time\n"
        "from billiard.common import reset_signals\n"
        "reset_signals()\n"
        "try: os.kill(os.getpid(), signal.SIGTERM); time.sleep(10)\n"
        "finally: os.kill(os.getpid(), signal.SIGHUP); time.sleep(10)\n"
    )
    assert done.returncode == common.EX_SOFTWARE


def test_another_signal_may_be_the_terminating_one() -> None:
    done = run(
        "import signal\n"
        "from billiard import common as c\n"
        "c.reset_signals()\n"
        "print(c.TERM_SIGNAME, int(c.TERM_SIGNAL), c.TERMSIGS_IGNORE, c.TERMSIGS_FORCE)\n"
        "print(signal.getsignal(signal.SIGTERM) == signal.SIG_IGN)\n",
        REMAP_SIGTERM="SIGQUIT",
    )
    assert done.stdout.split("\n")[:2] == ["SIGQUIT 3 {'SIGTERM'} {'SIGQUIT'}", "True"], done


def test_restarts_over_the_limit_raise_and_count_afresh() -> None:
    state = common.restart_state(3, 10)
    for _ in range(3):
        state.step(100.0)
    with pytest.raises(RestartFreqExceeded, match="3 in 10s"):
        state.step(100.0)
    assert state.R == 0


def test_a_new_period_forgets_the_restarts() -> None:
    state = common.restart_state(2, 10)
    state.step(100.0)
    state.step(100.0)
    state.step(110.0)
    assert (state.R, state.T) == (1, 110.0)


def test_without_a_limit_any_number_of_restarts_is_fine() -> None:
    for limit in (None, 0):
        state = common.restart_state(limit, 1)
        for _ in range(100):
            state.step(5.0)
        assert state.R == 100
