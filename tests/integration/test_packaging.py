"""What an installation of the wheel is to pip, to Celery and to a type checker."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import billiard

VERSION = "4.3.2+rs.1"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def installed() -> metadata.Distribution:
    """The installed distribution; a run on the tree itself has none."""
    for distribution in metadata.distributions(name="billiard"):
        return distribution
    if os.environ.get("CI"):
        pytest.fail("billiard is not installed, and this is CI")
    pytest.skip("billiard is not installed: this is a run on the tree")


def test_name_and_version(installed: metadata.Distribution) -> None:
    assert installed.metadata["Name"] == "billiard"
    assert installed.version == billiard.__version__ == VERSION


def test_what_is_imported_is_what_was_installed(installed: metadata.Distribution) -> None:
    assert Path(str(installed.locate_file("billiard"))) == Path(billiard.__file__).parent
    assert not Path(billiard.__file__).is_relative_to(ROOT / "python")


def test_it_satisfies_celery(installed: metadata.Distribution) -> None:
    requirements = map(Requirement, metadata.requires("celery") or ())
    (wanted,) = (each for each in requirements if each.name == "billiard")
    assert wanted.specifier.contains(installed.version)
    assert Requirement("billiard>=4.3.2,<5.0").specifier.contains(installed.version)


def test_pip_finds_nothing_broken(installed: metadata.Distribution) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "check"]
    done = subprocess.run(pip, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_one_wheel_for_every_cpython_from_3_11_on(installed: metadata.Distribution) -> None:
    tags = [
        line.removeprefix("Tag: ")
        for line in (installed.read_text("WHEEL") or "").splitlines()
        if line.startswith("Tag: ")
    ]
    assert tags
    assert all(tag.startswith("cp311-abi3-") for tag in tags)
    assert installed.metadata["Requires-Python"] == ">=3.11"


def test_contents(installed: metadata.Distribution) -> None:
    files = {str(path) for path in installed.files or ()}
    assert {"billiard/__init__.py", "billiard/py.typed", "billiard/_core.pyi"} <= files
    assert {name for name in files if name.endswith(".so")} == {"billiard/_core.abi3.so"}
    assert any(name.startswith("_billiard") for name in files)
    packages = {name.split("/")[0] for name in files if not name.startswith("..")}
    assert packages == {"billiard", "_billiard", f"billiard-{VERSION}.dist-info"}


def test_only_cloudpickle_is_needed(installed: metadata.Distribution) -> None:
    needed = [Requirement(text) for text in installed.requires or ()]
    assert [each.name for each in needed if not each.marker] == ["cloudpickle"]


def test_sdist_has_what_a_build_needs_and_nothing_built(tmp_path: Path) -> None:
    maturin = [sys.executable, "-m", "maturin", "sdist", "--out", str(tmp_path)]
    done = subprocess.run(maturin, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.iterdir()
    top = f"billiard-{VERSION}"
    assert archive.name == f"{top}.tar.gz"
    with tarfile.open(archive) as tar:
        names = {name.removeprefix(f"{top}/") for name in tar.getnames()}
    needed = {"Cargo.toml", "Cargo.lock", "pyproject.toml", "README.md", "LICENSE", "PKG-INFO"}
    assert needed | {"src/lib.rs", "python/billiard/__init__.py"} <= names
    assert any(name.startswith("python/_billiard") for name in names)
    assert not {name for name in names if name.endswith((".so", ".pyc", ".tmp"))}
