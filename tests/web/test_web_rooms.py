"""The three rooms of the front end: imports between them point one way."""

import ast
from pathlib import Path

import pytest

from raftkv import web

ROOT = Path(web.__file__).parent
ROOMS = ("api", "serve", "ops")
"""From the pure functions up; each imports itself and those before it."""


def imported(source: str) -> set[str]:
    """Return the names that a module's ``from`` lines are of."""
    return {
        node.module or ""
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom)
    }


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_no_later_one(room: str) -> None:
    """``api`` is pure of what carries it, and what carries requests knows no page."""
    later = {"app", "worker", *ROOMS[ROOMS.index(room) + 1 :]}
    found = {
        f"{path.name} imports {module}"
        for path in (ROOT / room).glob("*.py")
        for module in imported(path.read_text())
        if module.startswith("raftkv.web.") and module.split(".")[2] in later
    }
    assert not found


def test_every_module_has_a_room() -> None:
    """Beside the rooms there is only what puts them together."""
    beside = {path.stem for path in ROOT.glob("*.py")}
    assert beside == {"__init__", "app", "worker", "try_tls"}
