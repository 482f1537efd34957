"""A Celery worker as a process, and a client of it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kombu.pools
import pytest
import redis
import whole_messages  # noqa: F401  (a reader never finds half of what the client has sent)
from celery import Celery

HERE = Path(__file__).parent
#: seconds for a process to start or to end
PATIENCE = 60.0


# --- waiting for processes that are not children -----------------------------------------------


class Watched:
    """A process whose end can be waited for, whoever its parent is."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._descriptor = os.pidfd_open(pid)

    def wait(self, timeout: float = PATIENCE) -> bool:
        """True as soon as it has ended, False after `timeout` seconds."""
        return bool(select.select([self._descriptor], [], [], timeout)[0])

    def close(self) -> None:
        os.close(self._descriptor)

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def session_members(session: int) -> list[int]:
    """The processes of a session: a worker and everything that it started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                if int(fields[3]) == session and fields[0] != "Z":
                    found.append(int(entry.name))
    return found


def end_session(session: int, patience: float) -> list[int]:
    """Wait for the session to be empty; what had to be killed is returned."""
    deadline = time.monotonic() + patience
    killed = []
    for pid in session_members(session):
        with contextlib.suppress(ProcessLookupError), Watched(pid) as member:
            if not member.wait(max(0.0, deadline - time.monotonic())):
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
    return killed


# --- workers -----------------------------------------------------------------------------------


@dataclass
class Settings:
    """One way to run a worker."""

    name: str
    broker: str = "redis"
    start_method: str = "fork"
    #: whether `_billiard`, from which Celery's asynchronous pool takes `read`, can be imported
    extension: bool = True
    more: dict[str, Any] = field(default_factory=dict)

    def celery(self, redis_url: str, folder: Path) -> dict[str, Any]:
        """As Celery's own settings."""
        conf: dict[str, Any] = {
            "broker_url": redis_url,
            "result_backend": redis_url,
            "task_default_queue": f"queue-{uuid.uuid4().hex}",
            "worker_pool_start_method": self.start_method,
            "worker_concurrency": 2,
            "broker_connection_retry_on_startup": True,
            **self.more,
        }
        if self.broker == "filesystem":
            names = {
                option: str(folder / option.split("_")[0])
                for option in ("data_folder_in", "data_folder_out", "processed_folder")
            }
            names["control_folder"] = str(folder / "control")
            for name in names.values():
                Path(name).mkdir(exist_ok=True)
            conf["broker_url"] = "filesystem://"
            conf["broker_transport_options"] = {
                **names,
                "store_processed": True,
                "polling_interval": 0.02,
            }
        return conf


class Worker:
    """A Celery worker in a session of its own."""

    def __init__(self, settings: Settings, redis_url: str, folder: Path) -> None:
        self.settings = settings
        self.redis_url = redis_url
        self.conf = settings.celery(redis_url, folder)
        self.host = f"{settings.name}@localhost"
        self.log = folder / "worker.log"
        path = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
        if not settings.extension:
            path.insert(0, str(HERE / "without_extension"))
        reading, writing = os.pipe()
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path),
            "BILLIARD_TEST_CELERY": json.dumps(self.conf),
            "BILLIARD_TEST_READY": str(writing),
        }
        command = [sys.executable, "-m", "celery", "-A", "celery_app", "worker"]
        command += ["--hostname", self.host, "--loglevel=INFO"]
        command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
                env=environment,
                pass_fds=[writing],
                start_new_session=True,
            )
        os.close(writing)
        try:
            self.facts = self._wait_until_ready(reading)
        except BaseException:
            self.stop()
            raise
        finally:
            os.close(reading)

    def _wait_until_ready(self, reading: int) -> dict[str, Any]:
        with Watched(self.process.pid) as watched:
            ready = select.select([reading, watched._descriptor], [], [], PATIENCE)[0]
        facts = os.read(reading, 1 << 16) if reading in ready else b""
        if not facts:
            pytest.fail(f"the worker has not become ready:\n{self.log_tail()}")
        return dict(json.loads(facts))

    def log_tail(self) -> str:
        """The end of the log, short enough to be read in a report."""
        return "\n".join(self.log.read_text().splitlines()[-40:])

    def stop(self) -> int | None:
        """Warm shutdown; the exit status. What does not go is killed and fails the test."""
        self.process.terminate()
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            return None
        finally:
            left = end_session(self.process.pid, patience=60.0)
            self.process.wait()
            if left:
                pytest.fail(f"killed {left}, which the worker left:\n{self.log_tail()}")


class Client:
    """What a test does with a worker: send tasks, wait for results, meet tasks through redis."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.app = Celery("client", set_as_current=False)
        self.app.conf.update(worker.conf)
        self.redis = redis.Redis.from_url(worker.redis_url, socket_timeout=None)

    def send(self, task: str, *args: Any, **options: Any) -> Any:
        return self.app.send_task(f"celery_app.{task}", args, **options)

    def call(self, task: str, *args: Any, timeout: float = PATIENCE, **options: Any) -> Any:
        """Send and wait."""
        return self.send(task, *args, **options).get(timeout=timeout)

    def arrival(self, key: str, timeout: float = PATIENCE) -> int:
        """The pid of the next `hold` task that has begun."""
        came = self.redis.blpop([f"{key}:arrived"], timeout=timeout)
        assert came is not None, f"no task has arrived at {key} after {timeout} s"
        return int(came[1])

    def release(self, key: str, number: int = 1) -> None:
        self.redis.rpush(f"{key}:release", *range(number))

    def inspect(self, question: str) -> Any:
        """The answer of the worker to one of Celery's inspect commands."""
        host = self.worker.host
        inspector = self.app.control.inspect(destination=[host], timeout=PATIENCE)
        answer = getattr(inspector, question)()
        assert answer is not None, f"no answer to {question}"
        return answer[host]

    def control(self, command: str, *args: Any) -> Any:
        host = self.worker.host
        method = getattr(self.app.control, command)
        (answer,) = method(*args, destination=[host], reply=True, timeout=PATIENCE)
        return answer[host]

    def close(self) -> None:
        self.redis.close()
        self.app.backend.result_consumer.stop()
        self.app.backend.client.connection_pool.disconnect()
        self.app.close()
        kombu.pools.reset()  # what the producers and the control commands have opened
        del self.app  # some of its descriptors are closed only when it is collected
