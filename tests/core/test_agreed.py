"""What all nodes must agree on: every constant that decides an outcome is compared by name."""

import ast
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

from raftkv.core import agreed
from raftkv.core.agreed import (
    DECIDES_NOTHING,
    DECIDING_MODULES,
    FACT_CHARACTERS_MAX,
    agreed_facts,
    digest_of,
    first_difference,
    is_constant,
)
from raftkv.core.placement import seed_map
from raftkv.core.shard import machine
from raftkv.core.shard.outcomes import MemoryLimits

CORE = Path(agreed.__file__).parent
NODES = ["n1", "n2", "n3"]
FACTS = agreed_facts(seed_map("c", NODES, 4, 3), MemoryLimits())


def assigned(module: ModuleType) -> set[str]:
    """Return the constants that a module's source assigns, by the convention of their names."""
    assert module.__file__ is not None
    found = set()
    for node in ast.parse(Path(module.__file__).read_text()).body:
        targets = node.targets if isinstance(node, ast.Assign) else ()
        if isinstance(node, ast.AnnAssign):
            targets = [node.target]
        found |= {t.id for t in targets if isinstance(t, ast.Name) and t.id.isupper()}
    return found


def test_nodes_with_the_same_configuration_agree() -> None:
    """In whatever order they list the nodes."""
    other = agreed_facts(seed_map("c", ["n3", "n1", "n2"], 4, 3), MemoryLimits())
    assert first_difference(FACTS, other) is None
    assert digest_of(FACTS) == digest_of(other)


@pytest.mark.parametrize(
    ("nodes", "shards", "replicas", "kind", "said"),
    [
        (NODES, 4, 1, "ring", "cluster.replicas is 1 there and 3 here"),
        (NODES, 5, 3, "ring", "cluster.shards is 5 there and 4 here"),
        (["n3"], 4, 1, "ring", "cluster.nodes is n3 there and n1,n2,n3 here"),
        (NODES, 4, 3, "modulo", "partitioner is modulo of 512 virtual nodes there"),
    ],
)
def test_an_option_that_differs_is_named_with_both_values(
    nodes: list[str], shards: int, replicas: int, kind: str, said: str
) -> None:
    """That is what an operator looks for in node.toml."""
    theirs = agreed_facts(seed_map("c", nodes, shards, replicas, kind=kind), MemoryLimits())
    difference = first_difference(FACTS, theirs)
    assert difference is not None
    assert difference.startswith(said)
    assert digest_of(FACTS) != digest_of(theirs)


def test_a_placement_that_differs_is_seen_though_no_option_does() -> None:
    """Another preferred leader, as another version of the placement might choose."""
    mine = seed_map("c", NODES, 1, 3)
    turned = msgspec.structs.replace(mine.groups[0], replicas=mine.groups[0].replicas[::-1])
    theirs = msgspec.structs.replace(mine, groups=(turned,))
    difference = first_difference(
        agreed_facts(mine, MemoryLimits()), agreed_facts(theirs, MemoryLimits())
    )
    assert difference is not None
    assert difference.startswith("map is ")


@pytest.mark.parametrize("field", MemoryLimits.__struct_fields__)
def test_every_limit_of_the_idempotency_memory_is_compared(field: str) -> None:
    """A full table refuses, and refusing is an outcome."""
    changed = msgspec.structs.replace(MemoryLimits(), **{field: 7})
    theirs = agreed_facts(seed_map("c", NODES, 4, 3), changed)
    default = getattr(MemoryLimits(), field)
    assert first_difference(FACTS, theirs) == f"memory.{field} is 7 there and {default} here"


@pytest.mark.parametrize("name", ["CLOCK_US_MAX", "A_NEW_LIMIT"])
def test_a_constant_that_is_changed_or_added_is_compared(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has to remember to add it to a list."""
    monkeypatch.setattr(machine, name, 12_345, raising=False)
    theirs = agreed_facts(seed_map("c", NODES, 4, 3), MemoryLimits())
    difference = first_difference(FACTS, theirs)
    assert difference is not None
    assert difference.startswith(f"{name} is 12345 there and ")


def test_no_constant_escapes_the_comparison() -> None:
    """One of a kind that cannot be compared, or two of one name, would; exceptions have reasons."""
    owners: dict[str, str] = {}
    for module in DECIDING_MODULES:
        for name in assigned(module):
            assert owners.setdefault(name, module.__name__) == module.__name__
            value = getattr(module, name)
            fixed_answer = isinstance(value, msgspec.Struct)
            assert name in FACTS or name in DECIDES_NOTHING or fixed_answer, name
            assert fixed_answer or is_constant(name, value), name
    assert set(owners) >= set(DECIDES_NOTHING)
    assert not set(FACTS) & set(DECIDES_NOTHING)


def modules_in(node: ast.ImportFrom) -> set[str]:
    """The modules of the core that are imported from, or that are imported."""
    module = str(node.module).removeprefix("raftkv.core").removeprefix(".")
    if CORE.joinpath(*module.split("."), "__init__.py").exists():
        return {f"{module}.{alias.name}".removeprefix(".") for alias in node.names}
    return {module}


def test_every_module_that_applying_uses_is_among_the_deciding_ones() -> None:
    """Found from the source: a limit that moves to a new module is still compared."""
    seen, todo = set(), {"shard.machine", "batches", "shard.expiry", "placement"}
    while todo:
        name = todo.pop()
        seen.add(name)
        source = CORE.joinpath(*name.split(".")).with_suffix(".py").read_text()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("raftkv.core"):
                todo |= modules_in(node) - seen
    deciding = {module.__name__.removeprefix("raftkv.core.") for module in DECIDING_MODULES}
    assert seen - {"errors"} == deciding


def test_facts_are_bounded_whatever_the_map() -> None:
    """They fit a handshake, and long ones still differ."""
    names = [f"{'x' * 60}{number:03}" for number in range(64)]
    mine = agreed_facts(seed_map("c", names, 1024, 7), MemoryLimits())
    theirs = agreed_facts(seed_map("c", [*names[:-1], "y"], 1024, 7), MemoryLimits())
    assert max(map(len, mine.values())) <= FACT_CHARACTERS_MAX
    assert mine["cluster.nodes"] != theirs["cluster.nodes"]
    assert len(msgspec.msgpack.encode(mine)) < 2048


def test_nothing_said_is_no_difference() -> None:
    """A tool that only speaks the protocol has no facts."""
    assert first_difference(FACTS, {}) is None
    assert first_difference({}, FACTS) is None
    assert first_difference(FACTS, {"future": "1"}) is not None
