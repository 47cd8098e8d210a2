"""Dependencies of the package point down only, read from the source itself.

The table below is the layout of the project; an import that is not in it is a design decision and
has to be made here, in the open.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2] / "raftkv"

ALLOWED = {
    "core": set(),
    "status": {"core"},
    "storage": {"core"},
    "raft": {"core", "status", "storage"},
    "rpc": {"core", "status"},
    "engine": {"core", "status", "storage", "raft", "rpc"},
    "web": {"core", "status", "rpc"},
    "client": set(),
    "check": set(),
    "workloads": {"client"},
    "sim": {
        "core",
        "status",
        "storage",
        "raft",
        "rpc",
        "engine",
        "web",
        "client",
        "check",
        "workloads",
    },
    "testing": {"client", "engine"},  # it watches the processes that it starts
    "chaos": {"client", "check", "workloads", "testing"},
    "bench": {"client", "testing"},
    "cli": {
        "core",
        "status",
        "storage",
        "raft",
        "rpc",
        "engine",
        "web",
        "client",
        "check",
        "workloads",
        "sim",
        "testing",
        "chaos",
        "bench",
    },
}
"""Package → packages of raftkv that it may import besides itself and ``EVERYWHERE``."""

EVERYWHERE = {"version", "interpreter"}

CORE_MAY_IMPORT = {
    "bisect",
    "collections",
    "enum",
    "functools",
    "itertools",
    "math",
    "mmh3",
    "msgspec",
    "operator",
    "sortedcontainers",
    "typing",
}
"""All that the pure core is made of: nothing here can reach a clock, a file, a socket, a thread or
a random number. A list of what is allowed cannot forget what is forbidden."""


class Import(NamedTuple):
    """One imported module, by its full name, and where."""

    module: str
    path: Path
    line: int

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT.parent)}:{self.line} imports {self.module}"


def imports_in(source: str, path: Path) -> Iterator[Import]:
    """Yield what a file imports, also inside functions and under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, path, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            module = absolute(node, path)
            for alias in node.names:  # ``from raftkv import web`` imports raftkv.web
                yield Import(f"{module}.{alias.name}", path, node.lineno)


def absolute(node: ast.ImportFrom, path: Path) -> str:
    """Return the full name of the module that an import is from."""
    if node.level == 0:
        return node.module or ""
    package = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join([*package[: -node.level], *([node.module] if node.module else [])])


def imports_of(package: str) -> list[Import]:
    """Return all imports of a package of raftkv."""
    return [
        found
        for path in sorted((ROOT / package).rglob("*.py"))
        for found in imports_in(path.read_text(encoding="utf-8"), path)
    ]


def forbidden(package: str, imports: list[Import]) -> list[str]:
    """Return the imports that point up or sideways."""
    allowed = {package, *EVERYWHERE, *ALLOWED[package]}
    return [
        str(found)
        for found in imports
        if (parts := [*found.module.split("."), "version"])[0] == "raftkv"
        and parts[1] not in allowed
    ]


def test_every_package_has_its_place_in_the_layout() -> None:
    """A new package must be put into the table."""
    found = {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()}
    assert found <= set(ALLOWED)


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_point_down(package: str) -> None:
    """Each package imports only what lies below it."""
    assert forbidden(package, imports_of(package)) == []


def test_the_layout_has_no_cycle() -> None:
    """The table itself points down: packages can be put in an order."""
    placed: set[str] = set()
    while waiting := [name for name in ALLOWED if name not in placed]:
        ready = {name for name in waiting if ALLOWED[name] <= placed}
        assert ready, waiting
        placed |= ready


def test_nothing_that_is_installed_imports_tests() -> None:
    """Tests import raftkv, never the other way round: a wheel has no tests."""
    assert [
        str(found)
        for path in sorted(ROOT.rglob("*.py"))
        for found in imports_in(path.read_text(encoding="utf-8"), path)
        if found.module.split(".")[0] == "tests"
    ] == []


def test_what_tests_share_imports_no_test() -> None:
    """What several folders use lies below them all."""
    support = ROOT.parent / "tests" / "support"
    assert [
        str(found)
        for path in sorted(support.rglob("*.py"))
        for found in imports_in(path.read_text(encoding="utf-8"), path)
        if found.module.startswith("tests.") and not found.module.startswith("tests.support.")
    ] == []


def test_the_core_is_pure() -> None:
    """The core imports nothing that could make two replicas differ."""
    impure = [
        str(found)
        for found in imports_of("core")
        if found.module.split(".")[0] not in CORE_MAY_IMPORT | {"raftkv"}
    ]
    assert impure == []


def test_only_raft_imports_pysyncobj() -> None:
    """The library is hardened in one place; used anywhere else it would be used raw.

    That is what one program does, to be compared with.
    """
    users = {
        str(found.path.relative_to(ROOT))
        for path in sorted(ROOT.rglob("*.py"))
        for found in imports_in(path.read_text(encoding="utf-8"), path)
        if found.module.split(".")[0] == "pysyncobj"
    }
    users.remove("bench/compare/pysyncobj_http.py")
    assert {user.split("/")[0] for user in users} == {"raft"}


def test_the_checker_uses_the_standard_library_only() -> None:
    """What judges the store shares no code with it."""
    strangers = [
        str(found)
        for found in imports_of("check")
        if (top := found.module.split(".")[0]) != "raftkv" and top not in sys.stdlib_module_names
    ]
    assert strangers == []


@pytest.mark.parametrize(
    "line",
    [
        "import raftkv.engine.node",
        "from raftkv.engine import node",
        "from raftkv import engine",
        "from ..engine import node",
        "from .. import engine",
        "def later():\n    import raftkv.engine",
    ],
)
def test_no_way_of_importing_escapes(line: str) -> None:
    """However the web would import the engine, it is seen."""
    path = ROOT / "web" / "pages.py"
    assert len(forbidden("web", list(imports_in(line, path)))) == 1
