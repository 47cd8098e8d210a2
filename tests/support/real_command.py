"""The raftkv command as a person runs it, and what a refusal must look like.

A refusal is ONE line on standard error that names the file or option, an exit code that is not 0,
and a directory that is as it was.
"""

import contextlib
import hashlib
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from raftkv.interpreter import PYTHON_M

RAFTKV = (*PYTHON_M, "raftkv.cli.main")
TIMEOUT_S = 60

# What a node may touch without changing anything: who holds the directory, and where it answers.
PASSING = frozenset({"lock", "log", "pid", "engine.sock"})


def run(
    *arguments: str | Path, before: Sequence[str] = (), stdin: bytes = b""
) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end; ``before`` is put in front of it (``unshare ...``)."""
    command = [*before, *RAFTKV, *map(str, arguments)]
    done = subprocess.run(  # noqa: S603 -- our own command
        command, input=stdin, capture_output=True, check=False, timeout=TIMEOUT_S
    )
    return subprocess.CompletedProcess(
        command, done.returncode, done.stdout.decode(), done.stderr.decode()
    )


def refusal(done: "subprocess.CompletedProcess[str]", *, code: int = 1) -> str:
    """Check that this is a refusal, and return its line without the program's name."""
    said = f"code {done.returncode}, standard error:\n{done.stderr}"
    assert done.returncode == code, said
    assert "Traceback" not in done.stderr, said
    assert done.stderr.count("\n") == 1, said
    name, colon, line = done.stderr.rstrip("\n").partition(": ")
    assert (name, colon) == ("raftkv", ": "), said
    return line


def tree_digest(directory: Path) -> dict[str, str]:
    """Everything below ``directory`` by its content, but for what comes and goes with processes."""
    digests = {}
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        if path.name in PASSING:
            continue
        if path.is_file():
            digests[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            digests[name] = "directory" if path.is_dir() else "other"
    return digests


@contextlib.contextmanager
def replaced(file: Path, content: bytes) -> Iterator[None]:
    """Have other content in a file, mode and all else as before, until the block ends."""
    original = file.read_bytes()
    file.write_bytes(content)
    try:
        yield
    finally:
        file.write_bytes(original)


@contextlib.contextmanager
def edited(file: Path, *changes: tuple[str, str]) -> Iterator[None]:
    """Have other text in a configuration until the block ends."""
    text = file.read_text()
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new, 1)
    with replaced(file, text.encode()):
        yield


@contextlib.contextmanager
def moved_away(path: Path) -> Iterator[None]:
    """Have a file or directory elsewhere until the block ends."""
    elsewhere = path.with_name(path.name + ".away")
    path.rename(elsewhere)
    try:
        yield
    finally:
        if path.is_dir():
            shutil.rmtree(path)
        elsewhere.rename(path)
