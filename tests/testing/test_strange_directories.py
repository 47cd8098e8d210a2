"""Somebody else's files in the working or the temporary directory are not run and not followed."""

import ast
import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from raftkv.engine.workers import WORKER_COMMAND
from raftkv.interpreter import PYTHON_M
from raftkv.testing import launch, ports
from raftkv.testing.ports import PortReservation
from raftkv.testing.processes import RAFTKV_COMMAND

RAFTKV = Path(launch.__file__).parents[1]
IMPORTED = ("raftkv", "uvloop", "msgspec", "click", "ctypes")
"""What the processes below import early."""


@pytest.mark.parametrize(
    ("command", "last_words"),
    [
        ((*RAFTKV_COMMAND, "--version"), b"raftkv"),
        ((*launch.COMMAND, "--", "echo", "launched"), b"launched"),
        (WORKER_COMMAND, b"HTTP worker cannot start"),
        ((*PYTHON_M, "raftkv.chaos.proxy", "1"), b""),
    ],
    ids=["raftkv", "launch", "worker", "proxy"],
)
def test_modules_of_the_working_directory_are_not_run(
    tmp_path: Path, command: tuple[str, ...], last_words: bytes
) -> None:
    """A process of ours does what it is for, whatever lies where it was started."""
    for name in IMPORTED:
        (tmp_path / f"{name}.py").write_text("open('ran', 'w').close()\n")
    done = subprocess.run(  # noqa: S603 -- our own commands
        command, cwd=tmp_path, input=b"", capture_output=True, check=False, timeout=60
    )
    assert not (tmp_path / "ran").exists()
    assert last_words in done.stdout + done.stderr


def test_modules_are_started_in_one_way() -> None:
    """Only ``PYTHON_M`` says ``-m``, so that no process of ours is started without ``-P``."""
    saying = {
        path.relative_to(RAFTKV).as_posix()
        for path in RAFTKV.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value == "-m"
    }
    assert saying == {"interpreter.py"}


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where the directory of lock files would be made."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"raftkv-ports-{os.getuid()}"


def test_a_strangers_link_in_place_of_the_lock_files_is_refused(
    temporary: Path, tmp_path: Path
) -> None:
    """Nothing is written where it leads."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    temporary.symlink_to(elsewhere)
    with pytest.raises(OSError, match="raftkv-ports"):
        PortReservation(1)
    assert not list(elsewhere.iterdir())


def test_a_directory_that_others_write_is_refused(temporary: Path) -> None:
    """They could put links into it."""
    temporary.mkdir()
    temporary.chmod(0o777)
    with pytest.raises(OSError, match="raftkv-ports"):
        PortReservation(1)


def test_a_link_in_place_of_a_lock_file_is_not_followed(
    temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was put there before the directory was looked at leads nowhere."""
    monkeypatch.setattr(ports, "_candidates", lambda: iter([20_000]))
    temporary.mkdir(mode=0o700)
    (temporary / "20000").symlink_to(tmp_path / "made")
    with pytest.raises(OSError, match="symbolic link"):
        PortReservation(1)
    assert not (tmp_path / "made").exists()
