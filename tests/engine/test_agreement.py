"""Who may lead: a node whose facts a majority of its map's nodes goes by, and once they did."""

from pathlib import Path

import pytest

from raftkv.engine.agreement import NAME, AgreedFile, Agreement
from raftkv.sim.disk import SimDisk
from raftkv.storage.checked_file import write_checked
from raftkv.storage.data_dir import DataDirError
from raftkv.storage.disk import DiskFull

DIRECTORY = Path("/data")
FACTS = {"cluster.replicas": "3"}
OTHERS = "cluster.replicas is 1 there and 3 here"


class Node:
    """Node n1 of a map, and what becomes of it."""

    def __init__(self, nodes: int = 3, disk: SimDisk | None = None) -> None:
        self.disk = disk or SimDisk()
        if disk is None:
            self.disk.make_directory(DIRECTORY)
        self.unwritten: list[Exception] = []
        self.changes = 0
        self.agreement = Agreement(
            nodes=[f"n{number + 1}" for number in range(nodes)],
            facts=FACTS,
            record=AgreedFile(self.disk, DIRECTORY),
            could_not_write=self.unwritten.append,
        )
        self.agreement.changed = self._changed

    def _changed(self) -> None:
        self.changes += 1

    def meets(self, *, agreeing: str = "", differing: str = "") -> "Node":
        """Let nodes come whose facts are the same, then some whose are not."""
        for name in agreeing.split():
            self.agreement.agrees(name)
        for name in differing.split():
            self.agreement.differs(name, OTHERS)
        return self

    @property
    def may_lead(self) -> bool:
        """Ask."""
        return self.agreement.may_lead

    @property
    def serves(self) -> bool:
        """Whether requests are taken at all."""
        return self.agreement.refusal is None


def test_a_node_of_one_leads_at_once() -> None:
    """There is nobody to agree with, and nothing is written."""
    node = Node(1)
    assert node.may_lead
    assert node.disk.listdir(DIRECTORY) == []


@pytest.mark.parametrize(("nodes", "enough"), [(2, 1), (3, 1), (4, 2), (5, 2)])
def test_a_new_node_leads_once_a_majority_has_agreed(nodes: int, enough: int) -> None:
    """Itself counts; one that waits still takes requests, as before a first election."""
    node = Node(nodes)
    for number in range(enough):
        assert not node.may_lead
        assert node.serves
        assert node.agreement.failure is not None
        node.agreement.agrees(f"n{number + 2}")
    assert node.may_lead
    assert node.agreement.failure is None
    assert node.changes == 1


def test_what_was_agreed_once_holds_without_the_others() -> None:
    """After a loss of power, too: the last node of a cluster leads what it alone holds."""
    node = Node().meets(agreeing="n2")
    assert Node(disk=node.disk.kill()).may_lead


def test_other_facts_have_to_be_agreed_to_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after an upgrade to a version with another limit."""
    node = Node().meets(agreeing="n2")
    monkeypatch.setitem(FACTS, "cluster.replicas", "2")
    assert not Node(disk=node.disk.kill()).may_lead


def test_one_odd_node_stops_nobody_but_itself() -> None:
    """Also when its peer is down, and whichever comes first."""
    assert Node().meets(differing="n3", agreeing="n2").may_lead
    assert Node().meets(agreeing="n2", differing="n3").may_lead
    again = Node(disk=Node().meets(agreeing="n2").disk.kill())
    assert again.meets(differing="n3").may_lead
    odd = Node().meets(differing="n2")
    assert not odd.may_lead
    assert odd.serves  # the next may agree
    assert not odd.meets(differing="n3").serves


@pytest.mark.parametrize(
    ("nodes", "agreeing", "differing"),
    [(2, "", "n2"), (4, "n2", "n3 n4"), (5, "n2", "n3 n4 n5"), (1, "", "n0")],
)
def test_a_node_that_cannot_have_a_majority_serves_nothing(
    nodes: int, agreeing: str, differing: str
) -> None:
    """Nor one that is alone by its own list, and is dialed by a node which lists it."""
    node = Node(nodes).meets(agreeing=agreeing, differing=differing)
    assert not node.may_lead
    assert OTHERS in str(node.agreement.refusal)
    assert node.agreement.failure == node.agreement.refusal


def test_a_node_that_a_majority_differs_from_stops_though_it_was_agreed_with() -> None:
    """They may have agreed to something else; it goes on when one of them agrees again."""
    node = Node().meets(agreeing="n2", differing="n3 n2")
    assert not node.serves
    node.agreement.agrees("n2")
    assert node.may_lead
    assert node.changes == 3


def test_nodes_of_no_map_do_not_stop_those_that_agree() -> None:
    """However often they come, they are fewer."""
    node = Node().meets(agreeing="n2 n3", differing="m1 m2 m1 m2 m1")
    assert node.may_lead


def test_an_agreement_that_cannot_be_written_holds_for_this_life() -> None:
    """A full disk does not keep a cluster from beginning."""

    def full(operation: str, path: Path) -> None:
        raise DiskFull(path, operation, "No space left on device")

    node = Node()
    node.disk.before = full
    node.meets(agreeing="n2")
    assert node.may_lead
    assert len(node.unwritten) == 1
    node.disk.before = None
    assert not Node(disk=node.disk.kill()).may_lead


def test_a_damaged_record_is_said() -> None:
    """Like any file of the data directory."""
    node = Node().meets(agreeing="n2")
    path = DIRECTORY / NAME
    write_checked(node.disk, path, b"agreed")
    node.disk.flip_bit(path, 9)
    with pytest.raises(DataDirError, match="agreed: checksum mismatch"):
        AgreedFile(node.disk, DIRECTORY)
