"""What the linters do not hold: one form for reasons, loggers and docstrings."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PRODUCT = sorted((ROOT / "raftkv").rglob("*.py"))
SOURCES = [*PRODUCT, *sorted((ROOT / "tests").rglob("*.py")), ROOT / "setup.py"]

NOQA = re.compile(r"#\s*noqa.*")
NOQA_FORM = re.compile(r"# noqa: [A-Z]+[0-9]+(, [A-Z]+[0-9]+)*( -- \S.*)?")
IGNORE = re.compile(r"#\s*type:\s*ignore.*")
IGNORE_FORM = re.compile(r"# type: ignore\[[a-z-]+(, [a-z-]+)*\](  # noqa: .*| # [^-\s].*)?")

NAMED_LOGGERS = {
    '"raftkv.audit"': "documented, so that operators can send it elsewhere",
    '"raftkv.web.worker"': "a program: its __name__ is __main__",
    '"kazoo.waiting"': "not ours, and made silent",
    "": "the root, which is set up",
}
"""What else than ``__name__`` a logger may be got by, and why."""


def lines(pattern: re.Pattern[str], paths: list[Path]) -> Iterator[tuple[str, str]]:
    """Every match, with where it stands; this file shows patterns and is left out."""
    for path in paths:
        if path == Path(__file__):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if found := pattern.search(line):
                yield f"{path.relative_to(ROOT)}:{number}", found[0]


def first_lines(path: Path) -> Iterator[tuple[str, str]]:
    """The first line of each docstring of a class or function, with where it stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node) or ""
            if text:
                yield f"{path.relative_to(ROOT)}:{node.lineno}", text.splitlines()[0]


@pytest.mark.parametrize(("found", "form"), [(NOQA, NOQA_FORM), (IGNORE, IGNORE_FORM)])
def test_reasons_have_one_form(found: re.Pattern[str], form: re.Pattern[str]) -> None:
    """``# noqa: X -- reason`` and ``# type: ignore[x] # reason``."""
    matches = list(lines(found, SOURCES))
    assert matches
    assert [(where, text) for where, text in matches if not form.fullmatch(text)] == []


def test_loggers_are_named_after_their_modules() -> None:
    """A logger is ``_logger = logging.getLogger(__name__)``, so that a line says where to look."""
    loggers = list(lines(re.compile(r"^.*getLogger\(.*$"), PRODUCT))
    assert loggers
    for where, line in loggers:
        name = line.partition("getLogger(")[2].partition(")")[0]
        own = line == "_logger = logging.getLogger(__name__)"
        assert own or name in NAMED_LOGGERS, f"{where}: {line}"


def test_docstrings_say_what_happens_and_not_who_listens() -> None:
    """A callback is "Called when ..."; no docstring begins with what every docstring could say."""
    words = re.compile(r"Hears?\b|This (function|method|class)\b|(Gets|Helper|Just)\b")
    docstrings = [found for path in PRODUCT for found in first_lines(path)]
    assert docstrings
    assert [(where, text) for where, text in docstrings if words.match(text)] == []
