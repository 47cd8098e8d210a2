"""docs/dependencies.md beside setup.cfg and the imports of the package."""

import ast
import configparser
import functools
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

TOP = Path(__file__).resolve().parents[2]
PAGE = (TOP / "docs" / "dependencies.md").read_text(encoding="utf-8")
MEASURING = ("raftkv/bench/",)
"""What measures other stores and bare servers imports them, and is no part of a node."""


def settings() -> configparser.ConfigParser:
    """setup.cfg."""
    parser = configparser.ConfigParser()
    parser.read(TOP / "setup.cfg", encoding="utf-8")
    return parser


def required(text: str) -> set[str]:
    """Names of the packages in a list of requirements."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {Requirement(line).name for line in lines} - {"raftkv"}


def table(heading: str) -> dict[str, set[str]]:
    """The rows below a heading: the package, and the paths where it is imported."""
    part = PAGE.split(f"### {heading}\n")[1].split("\n#")[0]
    return {
        name: set(paths_in(where))
        for name, where in re.findall(r"(?m)^\| `([\w-]+)`.*\| (.*) \|$", part)
    }


def paths_in(cell: str) -> Iterator[str]:
    """Paths between code marks; a bare name is in the folder of the one before it."""
    folder = ""
    for path in re.findall(r"`([^`]+)`", cell):
        yield path if "/" in path else folder + path
        folder = path.rpartition("/")[0] + "/" if "/" in path else folder


def test_client_and_server_need_what_is_listed() -> None:
    """The two tables are the requirements of the package and of its extra ``server``."""
    parser = settings()
    assert set(table("Client")) == required(parser["options"]["install_requires"])
    assert set(table("Server")) == required(parser["options.extras_require"]["server"])


@pytest.mark.parametrize("extra", ["test", "docs", "bench"])
def test_every_tool_has_its_reason(extra: str) -> None:
    """What an extra installs is named on the page."""
    named = set(re.findall(r"`([\w-]+)`", PAGE))
    assert required(settings()["options.extras_require"][extra]) <= named


@functools.cache
def importers() -> dict[str, set[str]]:
    """Module → files of raftkv that import it, also inside functions."""
    found = defaultdict[str, set[str]](set)
    for path in (TOP / "raftkv").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for name in imported(node):
                found[name.split(".")[0]].add(str(path.relative_to(TOP)))
    return found


def imported(node: ast.AST) -> list[str]:
    """Modules that a statement imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module else []


@pytest.mark.parametrize("package", sorted(table("Client") | table("Server")))
def test_a_package_is_imported_only_where_the_page_says(package: str) -> None:
    """So that what stands in the last column is what it would take to replace it."""
    where = (table("Client") | table("Server"))[package]
    module = package.replace("-", "_")
    found = {path for path in importers()[module] if not path.startswith(MEASURING)}
    assert found, package
    if package != "msgspec":  # everywhere but in the judge
        assert {path for path in found if not path.startswith(tuple(where))} == set()
        assert {path for path in where if not any(one.startswith(path) for one in found)} == set()
    else:
        assert not [path for path in found if path.startswith("raftkv/check/")]
