"""redis-server for the session, and Celery workers for the length of a test module."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from worker import PATIENCE, Client, Settings, Worker


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_redis(command: str, folder: Path) -> tuple[subprocess.Popen[str], str] | None:
    """A server on a free port, or None if the port was taken meanwhile."""
    port = free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    server = subprocess.Popen(
        [command, *options, "--appendonly", "no", "--daemonize", "no"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    for line in server.stdout:
        if "eady to accept connections" in line:
            return server, f"redis://127.0.0.1:{port}/0"
    server.wait()
    server.stdout.close()
    return None


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    command = shutil.which("redis-server")
    if command is None:
        if os.environ.get("CI"):
            pytest.fail("redis-server is not installed, and this is CI")
        pytest.skip("redis-server is not installed (Debian package redis-server)")
    for _ in range(5):
        started = start_redis(command, tmp_path_factory.mktemp("redis"))
        if started is not None:
            break
    else:
        pytest.fail("redis-server does not start")
    server, url = started
    yield url
    server.terminate()
    try:
        assert server.wait(PATIENCE) == 0
    finally:
        server.kill()
        server.wait()
        assert server.stdout is not None
        server.stdout.close()


@pytest.fixture(scope="module")
def worker(
    request: pytest.FixtureRequest, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Worker]:
    """A worker for all tests of a module with the same `Settings` (the fixture's parameter)."""
    settings: Settings = request.param
    worker = Worker(settings, redis_url, tmp_path_factory.mktemp(settings.name))
    yield worker
    assert worker.stop() == 0


@pytest.fixture
def client(worker: Worker) -> Iterator[Client]:
    client = Client(worker)
    yield client
    client.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Show the end of the worker's log under a failure."""
    report = yield
    running = getattr(item, "funcargs", {}).get("worker")
    if report.failed and isinstance(running, Worker):
        report.sections.append(("worker log", running.log_tail()))
    return report
