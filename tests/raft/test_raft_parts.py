"""How the parts of a replica fit together: they are composed, and only one knows PySyncObj."""

import ast
import sys
from pathlib import Path

import pytest

from raftkv import raft

ROOT = Path(raft.__file__).parent
SOURCES = {path.name: path.read_text() for path in sorted(ROOT.glob("*.py"))}
CLASSES = {
    found.name: [ast.unparse(base) for base in found.bases]
    for source in SOURCES.values()
    for found in ast.walk(ast.parse(source))
    if isinstance(found, ast.ClassDef)
}
SHAPES = {"Wire"}
"""Bases that only say how a message is encoded."""


def test_one_file_knows_the_private_names_of_pysyncobj() -> None:
    """Whoever changes the version of PySyncObj looks at this file and at ``seams.py``."""
    assert [name for name, source in SOURCES.items() if "_SyncObj__" in source] == ["stock.py"]


def test_no_part_inherits_from_another() -> None:
    """What a part needs of others it is given; nothing is overridden from afar."""
    inheriting = {
        name: bases for name, bases in CLASSES.items() if {*bases} & (CLASSES.keys() - SHAPES)
    }
    assert inheriting == {}
    assert [name for name, bases in CLASSES.items() if "SyncObj" in bases] == ["Stock"]


@pytest.mark.parametrize("name", ["quorum.py", "progress.py"])
def test_arithmetic_needs_nothing(name: str) -> None:
    """What is committed, and how far a follower is, is worked out with Python alone."""
    for found in ast.walk(ast.parse(SOURCES[name])):
        if isinstance(found, ast.Import):
            modules = [alias.name for alias in found.names]
        elif isinstance(found, ast.ImportFrom):
            modules = [str(found.module)]
        else:
            continue
        assert {module.split(".")[0] for module in modules} <= sys.stdlib_module_names
