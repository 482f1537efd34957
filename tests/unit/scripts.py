"""Programs that have to run in an interpreter of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import billiard

#: where the package is that is under test
ROOT = Path(billiard.__file__).parents[1]


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
