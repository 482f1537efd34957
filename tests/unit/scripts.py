"""Programs that have to run in an interpreter of their own."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import billiard

#: where the package is that is under test
ROOT = Path(billiard.__file__).parents[1]


@functools.cache
def interpreters() -> dict[tuple[int, int], str]:
    """The CPythons of this machine, the oldest first: 3.6 and newer, one of each version."""
    bins = [os.environ["PATH"]]
    root = os.environ.get("PYENV_ROOT", "")
    if not root and (pyenv := shutil.which("pyenv")):
        root = subprocess.run([pyenv, "root"], capture_output=True, text=True).stdout.strip()
    if root:  # a shim on PATH may refuse to run what it stands for
        bins[:0] = map(str, sorted(Path(root).glob("versions/3.*/bin")))
    found = {}
    for minor in range(6, 20):
        for directory in os.pathsep.join(bins).split(os.pathsep):
            path = shutil.which(f"python3.{minor}", path=directory)
            if path and _is_cpython(path, minor):
                found[3, minor] = path
                break
    return found


def _is_cpython(path: str, minor: int) -> bool:
    code = "import sys, _multiprocessing; print(sys.implementation.name, *sys.version_info[:2])"
    done = subprocess.run([path, "-I", "-c", code], capture_output=True, text=True)
    return done.stdout.split() == ["cpython", "3", str(minor)]


def environment(**extra: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **extra}


def run(
    *command: str | Path,
    cwd: Path | None = None,
    stdin: str = "",
    timeout: float = 60,
    **env: str,
) -> subprocess.CompletedProcess[str]:
    """Run the interpreter with `command`."""
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env=environment(**env),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def run_file(
    tmp_path: Path, source: str, *args: str, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run `source` as a script; it must end well."""
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(source))
    done = run(script, *args, **env)
    assert done.returncode == 0, done.stderr
    return done
