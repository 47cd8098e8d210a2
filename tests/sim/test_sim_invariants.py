"""The invariants: each promise that is broken is seen and named, and nothing else is.

Real logs (:class:`GroupJournal`) in stand-ins for groups and machines, moved by hand.
"""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import cast

import pytest

from raftkv.core.cluster_map import GroupId
from raftkv.core.shard.machine import StateMachine
from raftkv.raft.group import Group
from raftkv.raft.host import GroupBounds
from raftkv.raft.journal import GroupJournal
from raftkv.sim.invariants import Invariants
from raftkv.sim.ledger import Ledger
from raftkv.sim.machine import Machine
from raftkv.sim.violation import Violation

GROUP = GroupId(0, 1)

EMPTY = StateMachine(1, lambda _: True).digest
"""Of a state without a key."""


class Log:
    """A :class:`raftkv.raft.journal.LogStore` that is synced by hand."""

    def __init__(self) -> None:
        self.durable_lsn = 0
        self._lsn = 0

    def _record(self, *_: object) -> int:
        self._lsn += 1
        return self._lsn

    append = truncate_from = set_hard_state = compact = _record

    def sync(self) -> None:
        """Make everything durable."""
        self.durable_lsn = self._lsn


@dataclass
class Recovered:
    """What a log finds on its disk."""

    term: int = 0
    vote: str | None = None
    compacted: tuple[int, int] = (1, 0)
    entries: list[tuple[bytes, int, int]] = field(default_factory=list)


class Replica:
    """One machine with one group, as the invariants see it.

    Attributes:
        group: set its attributes, then :meth:`look`.
    """

    def __init__(self, invariants: Invariants, name: str) -> None:
        self._invariants = invariants
        self.machine = SimpleNamespace(name=name, life=0, serving=None)
        self.start()

    def start(self, recovered: Recovered | None = None) -> None:
        """A process begins, with what it finds on the disk."""
        self.log = Log()
        self.journal = GroupJournal(self.log, GROUP, recovered)
        self.log.sync()
        self.group = SimpleNamespace(
            id=GROUP, journal=self.journal, term=0, is_leader=False, commit_index=1,
            applied_index=1, last_index=1, digests=SimpleNamespace(mismatch=None),
            config=SimpleNamespace(
                members=tuple("abc"), owns=lambda _: True, bounds=GroupBounds()
            ),
            state=SimpleNamespace(digest=0, last_revision=0),
        )  # fmt: skip
        host = SimpleNamespace(turns=0)
        self.machine.life += 1
        replicas = [SimpleNamespace(group=cast("Group", self.group))]
        self.machine.serving = SimpleNamespace(host=host, replicas=replicas)

    def look(self) -> None:
        """A turn has ended."""
        self.machine.serving.host.turns += 1
        self.group.last_index = self.journal.last_index
        self._invariants.look(cast("Machine", self.machine))

    def lead(self, term: int) -> None:
        """Become the leader."""
        self.group.term, self.group.is_leader = term, True
        self.journal.setCurrentTerm(term, self.machine.name)
        self.look()

    def append(self, *terms: int, command: bytes = b"x") -> None:
        """Add entries of these terms to the log, and sync them."""
        for term in terms:
            self.journal.add(command, self.journal.last_index + 1, term)
        self.sync()
        self.look()

    def sync(self) -> None:
        """Make the log durable."""
        self.log.sync()
        self.journal.wal_synced()

    def commit(self, index: int, *, digest: int | None = None, revision: int = 0) -> None:
        """Commit and apply up to here; the state's digest is the index unless it is given."""
        self.group.commit_index = self.group.applied_index = index
        self.group.state.digest = index if digest is None else digest
        self.group.state.last_revision = revision
        self.look()

    def on_disk(self) -> Recovered:
        """What the next process finds if nothing was lost."""
        entries = [self.journal.entry(index) for index in range(2, self.journal.last_index + 1)]
        return Recovered(
            self.journal.getCurrentTerm(), self.journal.getVotedForNodeId(), entries=entries
        )


class Shard:
    """Three replicas under one set of invariants."""

    def __init__(self, log_entries_max: int = 100, ledger: Ledger | None = None) -> None:
        self.invariants = Invariants(log_entries_max=log_entries_max, ledger=ledger)
        self.a, self.b, self.c = (Replica(self.invariants, name) for name in "abc")
        self.all = (self.a, self.b, self.c)


def test_an_ordinary_life_breaks_nothing() -> None:
    """Elections, replication, a conflict that is cut off, a snapshot, a restart."""
    shard = Shard()
    shard.a.lead(1)
    for replica in shard.all:
        replica.append(1, 1)
    shard.a.append(1)  # reaches nobody
    for replica in shard.all:
        replica.commit(3)
    shard.b.lead(2)
    shard.a.group.is_leader = False
    shard.a.journal.deleteEntriesFrom(3)  # position of index 4
    for replica in shard.all:
        replica.append(2)
        replica.commit(4)
    shard.c.journal.compact(3)
    shard.c.look()
    shard.a.start(shard.a.on_disk())
    shard.a.look()
    shard.a.commit(4)
    assert shard.invariants.elections == 2
    assert shard.invariants.committed(GROUP) == 4


def test_two_leaders_of_one_term() -> None:
    """Election safety."""
    shard = Shard()
    shard.a.lead(3)
    with pytest.raises(Violation, match=r"a and b both led group 0\.1 in term 3"):
        shard.b.lead(3)


def test_two_leaders_of_different_terms_are_no_violation() -> None:
    """One of them does not know yet that it leads no more."""
    shard = Shard()
    shard.a.lead(3)
    shard.b.lead(4)
    shard.a.look()
    assert shard.invariants.elections == 2


def test_a_leader_without_a_committed_entry() -> None:
    """Leader completeness."""
    shard = Shard()
    shard.a.append(1, 1)
    shard.b.append(1)
    shard.a.commit(3)
    with pytest.raises(Violation, match=r"b leads group 0\.1 in term 2 without entry 3"):
        shard.b.lead(2)


def test_a_leader_with_another_entry_in_place_of_a_committed_one() -> None:
    """An entry of the same index and another term is not it."""
    shard = Shard()
    shard.a.append(1, 2)
    shard.b.append(1, 1)
    shard.a.commit(3)
    with pytest.raises(Violation, match="without entry 3, which is committed"):
        shard.b.lead(3)


def test_a_leader_of_an_old_term_may_lack_what_a_newer_one_commits() -> None:
    """Its votes were on the way for long: nobody follows it, and it can commit nothing."""
    shard = Shard()
    late, old, new = shard.a, shard.b, shard.c
    old.lead(1)
    old.append(1)
    late.append(1)
    new.append(1)
    old.commit(2)
    new.lead(3)
    new.append(3)
    old.append(3)
    new.commit(3)
    late.lead(2)


def test_a_leader_of_an_old_term_has_what_was_committed_before_it() -> None:
    """However late its votes come."""
    shard = Shard()
    late, old, new = shard.a, shard.b, shard.c
    old.lead(1)
    old.append(1)
    new.append(1)
    old.commit(2)
    new.lead(3)
    new.append(3)
    old.append(3)
    new.commit(3)
    with pytest.raises(Violation, match="term 2 without entry 2"):
        late.lead(2)


def test_a_leader_whose_snapshot_covers_what_is_committed() -> None:
    """It need not hold the entries."""
    shard = Shard()
    for replica in (shard.a, shard.b):
        replica.append(1, 1)
        replica.commit(3)
    shard.b.journal.compact(3)
    shard.b.lead(2)
    assert shard.invariants.elections == 1


@pytest.mark.parametrize(
    ("held", "names"),
    [
        ((), "nobody"), ((1,), "nobody"), ((1, 1), "nobody"), ((1, 1, 3), "nobody"),
        ((1, 2), "b"), ((1, 2, 3), "b"),
    ],
)  # fmt: skip
def test_an_entry_that_a_leader_commits_without_a_majority(
    held: tuple[int, ...], names: str
) -> None:
    """Another entry at its index is not it, and the leader's own copy counts when it is durable."""
    shard = Shard()
    shard.b.append(*held)
    for replica in shard.all:
        replica.look()
    shard.a.lead(2)
    for term in (1, 2):
        shard.a.journal.add(b"x", shard.a.journal.last_index + 1, term)
    shard.a.look()
    message = rf"a committed entry 3 of term 2 of group 0\.1, which only {names} of 3 members has"
    with pytest.raises(Violation, match=message):
        shard.a.commit(3)


def test_a_leader_that_commits_and_steps_down_in_one_turn() -> None:
    """It committed as the leader that it was."""
    shard = Shard()
    for replica in shard.all:
        replica.look()
    shard.a.lead(2)
    shard.a.append(2)
    shard.a.group.is_leader = False
    with pytest.raises(Violation, match="which only a of 3 members has"):
        shard.a.commit(2)


def test_an_entry_that_a_leader_commits_with_a_majority() -> None:
    """Of disks: also of nodes that are down, or whose logs have moved on since."""
    shard = Shard()
    shard.a.lead(1)
    for replica in (shard.a, shard.b):
        replica.append(1, 1)
    shard.b.machine.serving = None
    shard.a.commit(2)
    shard.c.append(1, 1, 2)
    shard.a.commit(3)


@pytest.mark.parametrize(
    ("one", "other"),
    [((b"x", 1, 2), (b"y", 1, 2)), ((b"x", 1, 2), (b"x", 2, 2))],
    ids=["another command", "another predecessor"],
)
def test_logs_that_do_not_match(one: tuple[bytes, int, int], other: tuple[bytes, int, int]) -> None:
    """Log matching: index and term decide the entry and all before it."""
    shard = Shard()
    for replica, (command, *terms) in ((shard.a, one), (shard.b, other)):
        replica.append(terms[0])
        if replica is shard.a:
            replica.append(terms[1], command=command)
    with pytest.raises(Violation, match=r"b holds another entry 3 of term 2 of group 0\.1"):
        shard.b.append(other[2], command=other[0])


def test_a_log_that_was_cut_off_is_looked_at_again() -> None:
    """What replaces a conflicting tail has to match as well."""
    shard = Shard()
    shard.a.append(1, 2, 2)
    shard.b.append(1, 1, 1)
    shard.b.journal.deleteEntriesFrom(2)
    with pytest.raises(Violation, match="b holds another entry 3 of term 2"):
        shard.b.append(2, 2, command=b"other")


def test_a_leader_that_takes_back_an_entry_of_its_own() -> None:
    """Leader append-only: it deletes nothing in its log, and replaces nothing."""
    shard = Shard()
    shard.a.lead(2)
    shard.a.append(2, 2)
    shard.a.journal.deleteEntriesFrom(2)
    with pytest.raises(
        Violation, match=r"a leads group 0\.1 in term 2, and its own entry 3 .*gone"
    ):
        shard.a.look()


def test_a_leader_of_a_newer_term_may_have_been_cut_before() -> None:
    """As a follower it deletes what conflicts; and a snapshot takes the place of entries."""
    shard = Shard()
    shard.a.lead(2)
    shard.a.append(2, 2)
    shard.a.journal.deleteEntriesFrom(2)
    shard.a.lead(4)
    shard.a.append(4)
    shard.a.journal.compact(3)
    shard.a.look()
    assert shard.invariants.elections == 2


def test_a_leader_that_counts_copies_of_an_older_entry() -> None:
    """Figure 8: only an entry of its own term commits what is before it."""
    shard = Shard()
    for replica in shard.all:
        replica.append(1, 1)
    shard.a.lead(2)
    with pytest.raises(Violation, match=r"leader of .* in term 2, committed entry 3 of term 1"):
        shard.a.commit(3)


def test_a_follower_that_commits_what_no_majority_has() -> None:
    """Nobody led it there; the ledger takes only what a majority has on disk."""
    shard = Shard(ledger=Ledger())
    for replica in shard.all:
        replica.look()
    shard.b.append(1, 1)
    with pytest.raises(Violation, match=r"b committed entry 3 of term 1 .* which only b of 3"):
        shard.b.commit(3)


def test_a_follower_may_be_the_first_to_call_an_entry_committed() -> None:
    """Its leader told so and died in the same turn."""
    shard = Shard(ledger=Ledger())
    for replica in (shard.a, shard.b):
        replica.append(1, 1)
    shard.a.machine.serving = None
    shard.b.commit(3, digest=EMPTY)
    assert shard.invariants.committed(GROUP) == 3


def test_a_state_that_differs_from_that_of_the_ledger() -> None:
    """All replicas may have applied the same thing wrongly."""
    shard = Shard(ledger=Ledger())
    for replica in shard.all:
        replica.append(1, 1)
    with pytest.raises(Violation, match=r"the state of group 0\.1 differs at entry 3"):
        shard.a.commit(3, digest=EMPTY + 1)


@pytest.mark.parametrize("crash", [False, True])
def test_a_term_that_goes_back(crash: bool) -> None:  # noqa: FBT001 -- a case
    """A replica that forgot its term would vote in it again."""
    shard = Shard()
    shard.a.journal.setCurrentTerm(5, None)
    shard.a.append(1)
    if crash:
        shard.a.start(Recovered(4, entries=shard.a.on_disk().entries))
    else:
        shard.a.journal.setCurrentTerm(4, None)
    shard.a.group.term = 4
    with pytest.raises(Violation, match=r"a had reached term 5 of|term of group 0\.1 went from 5"):
        shard.a.look()


def test_a_commit_index_that_goes_back() -> None:
    """Within the life of a process it never does."""
    shard = Shard()
    shard.a.append(1, 1)
    shard.a.commit(3)
    with pytest.raises(Violation, match=r"a: commit index of group 0\.1 went from 3 to 2"):
        shard.a.commit(2)


def test_a_commit_index_beyond_the_log() -> None:
    """What is not in the log cannot be committed."""
    shard = Shard()
    shard.a.append(1)
    with pytest.raises(Violation, match="went from 1 to 5, its log ends at 2"):
        shard.a.commit(5)


def test_a_commit_index_that_begins_anew_with_a_process() -> None:
    """It is learned again from the leader."""
    shard = Shard()
    shard.a.append(1, 1)
    shard.a.commit(3)
    shard.a.start(shard.a.on_disk())
    shard.a.commit(2)
    shard.a.commit(3)


def test_another_entry_committed_at_one_index() -> None:
    """State machine safety."""
    shard = Shard()
    shard.a.append(1, 1)
    shard.b.append(1, 2)
    shard.a.commit(3)
    with pytest.raises(Violation, match=r"b committed entry 3 of group 0\.1 with term 2"):
        shard.b.commit(3)


def test_an_applied_index_that_goes_back_or_too_far() -> None:
    """Only what is committed is applied, and once."""
    for applied in (2, 4):
        shard = Shard()
        shard.a.append(1, 1, 1)
        shard.a.commit(3)
        shard.a.group.applied_index = applied
        with pytest.raises(Violation, match=f"applied index of 0.1 went 3 → {applied}"):
            shard.a.look()


@pytest.mark.parametrize("other", [{"digest": 8}, {"digest": 7, "revision": 1}])
def test_states_that_differ_at_one_index(other: dict[str, int]) -> None:
    """By their digest, or by the revision of the last write."""
    shard = Shard()
    for replica in (shard.a, shard.b):
        replica.append(1)
    shard.a.commit(2, digest=7)
    with pytest.raises(Violation, match=r"b: the state of group 0\.1 differs at entry 2"):
        shard.b.commit(2, **other)


def test_a_digest_alarm() -> None:
    """What the replicas find themselves is a violation, too."""
    shard = Shard()
    shard.a.group.digests.mismatch = "entry 7"
    with pytest.raises(Violation, match=r"digest alarm of group 0\.1: entry 7"):
        shard.a.append(1)


def test_a_durable_entry_that_is_lost_in_a_crash() -> None:
    """What a replica may have acknowledged must be there again."""
    shard = Shard()
    shard.a.append(1, 1)
    shard.a.start(Recovered(1, entries=shard.a.on_disk().entries[:1]))
    with pytest.raises(Violation, match=r"a called entry 3 of term 1 .*its log ends at 2"):
        shard.a.look()


def test_an_entry_that_was_not_durable_may_be_lost() -> None:
    """Nobody was told that it was there."""
    shard = Shard()
    shard.a.append(1)
    shard.a.journal.add(b"x", 3, 1)
    shard.a.look()
    shard.a.start(Recovered(1, entries=shard.a.on_disk().entries[:1]))
    shard.a.look()
    assert shard.a.journal.last_index == 2


def test_a_durable_entry_may_be_in_a_snapshot_after_the_crash() -> None:
    """The log begins behind it."""
    shard = Shard()
    shard.a.append(1, 1)
    shard.a.start(Recovered(1, compacted=(3, 1)))
    shard.a.look()
    assert shard.a.journal.first_index == 3


def test_a_vote_that_changes_after_a_crash() -> None:
    """A replica votes once in a term, whatever happens to it."""
    shard = Shard()
    shard.a.append(1)
    shard.a.journal.setCurrentTerm(5, "b")
    shard.a.group.term = 5
    shard.a.look()
    shard.a.sync()  # which is all that changes
    shard.a.look()
    shard.a.start(Recovered(5, "c", entries=shard.a.on_disk().entries))
    shard.a.group.term = 5
    shard.a.journal.setCurrentTerm(5, "c")
    shard.a.sync()
    with pytest.raises(Violation, match=r"a voted for b and for c in term 5 of group 0\.1"):
        shard.a.look()


def test_a_vote_that_was_not_durable_may_change() -> None:
    """It has not left the machine."""
    shard = Shard()
    shard.a.append(1)
    shard.a.journal.setCurrentTerm(5, "b")
    shard.a.group.term = 5
    shard.a.look()
    shard.a.start(Recovered(4, None, entries=shard.a.on_disk().entries))
    shard.a.journal.setCurrentTerm(5, "c")
    shard.a.sync()
    shard.a.look()


def test_a_vote_of_another_term_is_another_vote() -> None:
    """And other replicas vote for whom they like."""
    shard = Shard()
    for replica, vote, term in ((shard.a, "b", 5), (shard.a, "c", 6), (shard.b, "a", 5)):
        replica.journal.setCurrentTerm(term, vote)
        replica.sync()
        replica.group.term = term
        replica.look()


def test_a_damaged_disk_may_have_lost_what_it_held() -> None:
    """Entries and votes; only those of the damaged machine, and only of lives before it."""
    shard = Shard()
    for replica in (shard.a, shard.b):
        replica.journal.setCurrentTerm(5, "c")
        replica.append(5, 5)
    shard.invariants.damaged(cast("Machine", shard.a.machine))
    shard.a.start()
    shard.a.journal.setCurrentTerm(5, "b")
    shard.a.sync()
    shard.a.look()
    shard.b.start()
    with pytest.raises(Violation, match="b called entry 3 of term 5"):
        shard.b.look()
    shard.a.append(5, 5)
    shard.a.start()
    with pytest.raises(Violation, match="a called entry 3 of term 5"):
        shard.a.look()


def damage(shard: Shard, *replicas: Replica) -> None:
    """A bit rots on the disk of each, while it is down."""
    for replica in replicas:
        replica.machine.serving = None
        shard.invariants.damaged(cast("Machine", replica.machine))


@pytest.mark.parametrize("names", ["b", "bc", "abc"])
def test_damaged_disks_are_believed_only_for_what_they_held(names: str) -> None:
    """What a leader commits later must be on the disks of a majority, damaged once or not."""
    shard = Shard()
    for replica in shard.all:
        replica.append(1)
    for name in names:
        replica = getattr(shard, name)
        damage(shard, replica)
        replica.start(replica.on_disk())
        replica.look()
    shard.a.lead(2)
    shard.a.append(2)
    with pytest.raises(
        Violation, match=r"committed entry 3 of term 2 .* which only a of 3 members"
    ):
        shard.a.commit(3)


def test_what_a_damaged_disk_held_may_still_be_counted() -> None:
    """The leader was told of it before; the machine may be down, empty, or not caught up yet."""
    shard = Shard()
    shard.a.lead(1)
    for replica in (shard.a, shard.b):
        replica.append(1, 1)
    damage(shard, shard.b)
    shard.a.commit(2)
    shard.b.start()
    shard.b.look()
    shard.a.commit(3)
    shard.a.append(1)
    with pytest.raises(Violation, match=r"entry 4 of term 1 .* which only a of 3 members"):
        shard.a.commit(4)


def test_a_disk_that_was_damaged_twice_is_believed_for_what_it_held_first() -> None:
    """It never got back what it had acknowledged before the first time."""
    shard = Shard()
    shard.a.lead(1)
    for replica in (shard.a, shard.b):
        replica.append(1, 1)
    damage(shard, shard.b)
    shard.b.start()
    shard.b.append(1)
    damage(shard, shard.b)
    shard.b.start()
    shard.b.look()
    shard.a.commit(3)
    assert shard.invariants.committed(GROUP) == 3


def test_a_damaged_disk_is_believed_until_it_has_healed() -> None:
    """Once it holds again what it held, what it holds now is what counts."""
    shard = Shard()
    for replica in (shard.a, shard.b):
        replica.append(1, 1)
    damage(shard, shard.b)
    shard.b.start()
    shard.b.append(1, 1)
    shard.b.journal.deleteEntriesFrom(2)  # position of index 3, which nobody committed
    shard.b.look()
    shard.a.lead(1)
    with pytest.raises(Violation, match=r"entry 3 of term 1 .* which only a of 3 members"):
        shard.a.commit(3)


def test_damage_that_was_undone_excuses_nothing() -> None:
    """A bit that was given back to a node that refused to start: entries and votes are there."""
    for lost in ("entry", "vote"):
        shard = Shard()
        shard.a.journal.setCurrentTerm(5, "b")
        shard.a.append(5, 5)
        before = shard.a.on_disk()
        damage(shard, shard.a)
        shard.invariants.repaired(cast("Machine", shard.a.machine))
        if lost == "entry":
            before.entries.pop()
        shard.a.start(before)
        if lost == "vote":
            shard.a.journal.setCurrentTerm(5, "c")
            shard.a.sync()
        with pytest.raises(Violation, match=r"called entry 3|voted for b and for c in term 5"):
            shard.a.look()


def test_a_log_that_is_never_cut() -> None:
    """Memory is bounded by the policy for snapshots."""
    shard = Shard(log_entries_max=10)
    shard.a.append(*[1] * 9)
    with pytest.raises(Violation, match=r"a: the log of group 0\.1 has 11 entries"):
        shard.a.append(1)


def test_a_machine_that_is_down_is_not_looked_at() -> None:
    """Nor is one twice in the same turn."""
    shard = Shard()
    shard.a.lead(1)
    shard.b.group.term, shard.b.group.is_leader = 1, True
    shard.b.machine.serving = None
    shard.invariants.look(cast("Machine", shard.b.machine))
    assert shard.invariants.elections == 1
    assert shard.invariants.committed(GroupId(7, 1)) == 0
