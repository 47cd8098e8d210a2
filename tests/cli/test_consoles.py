"""A pipe has no width: nothing that a script reads is folded."""

import re
from pathlib import Path

import pytest

import raftkv.cli
from raftkv.cli.consoles import console

SENTENCE = "word " * 60 + "end"


@pytest.mark.parametrize("stderr", [False, True])
def test_a_sentence_is_one_line_in_a_pipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *, stderr: bool
) -> None:
    """Whoever looks for a sentence in a file finds it whole."""
    monkeypatch.delenv("COLUMNS", raising=False)
    console(stderr=stderr).print(SENTENCE)
    assert SENTENCE + "\n" in capsys.readouterr()


def test_a_width_that_is_asked_for_is_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``COLUMNS`` folds a pipe's lines too, as it does for other programs."""
    monkeypatch.setenv("COLUMNS", "40")
    console().print(SENTENCE)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 40


def test_every_command_writes_by_such_a_console() -> None:
    """No command makes one of its own, whose lines would be folded at 80."""
    files = Path(raftkv.cli.__file__).parent.glob("*.py")
    made = [file.name for file in files if re.search(r"\bConsole\(", file.read_text())]
    assert made == ["consoles.py"]
