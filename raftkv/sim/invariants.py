"""What must hold at every moment, looked at after every turn of every node.

From the Raft paper, figure 3: election safety, leader append-only, log matching, leader
completeness, state machine safety. Beyond it: what is committed is durable at a majority in that
moment, and a leader commits by an entry of its own term; what a replica has called durable, term
and votes among it, survives its crash; digests and revisions are equal at equal index, and those of
a state machine that applies every committed entry itself (:mod:`raftkv.sim.ledger`); memory and
logs stay bounded.
"""

import zlib
from dataclasses import dataclass, field

from raftkv.core.cluster_map import GroupId
from raftkv.raft.group import Group
from raftkv.raft.journal import FIRST_INDEX
from raftkv.sim.ledger import Ledger
from raftkv.sim.machine import Machine
from raftkv.sim.violation import Violation

EntryId = tuple[int, int]
"""(index, term)."""


@dataclass(slots=True)
class _GroupFacts:
    """What is known of a group, from all its replicas together."""

    leaders: dict[int, str] = field(default_factory=dict)
    entries: dict[EntryId, tuple[int, int]] = field(default_factory=dict)
    """(index, term) → (term of the entry before, checksum): log matching."""
    committed: dict[int, int] = field(default_factory=dict)
    """index → term."""
    last_committed: int = 0
    committed_by: dict[int, int] = field(default_factory=dict)
    """term → the highest index that a replica in that term has called committed."""
    states: dict[int, tuple[int, int]] = field(default_factory=dict)
    """applied index → (digest, last revision)."""
    commands: dict[int, dict[int, bytes]] = field(default_factory=dict)
    """index → term → command, of entries that the ledger has not got yet."""
    recorded: int = FIRST_INDEX
    """Up to here the ledger has the committed entries."""


@dataclass(slots=True)
class _View:
    """What was seen of one replica last; ``durable`` and ``votes`` outlive its process."""

    life: int
    facts: tuple[object, ...] = ()
    led: int = 0
    """The term that it led, 0 if it did not."""
    commit: int = 0
    applied: int = 0
    checked: EntryId = (0, 0)
    durable: EntryId = (0, 0)
    term: int = 0
    """Highest term that was durable."""


@dataclass(frozen=True, slots=True)
class _Damage:
    """What a machine had promised when its disk was tampered with."""

    life: int
    """The last life before it."""
    votes: dict[tuple[str, GroupId, int], str]
    durable: dict[GroupId, EntryId]


class Invariants:
    """Looks at the groups of one machine after another.

    Args:
        log_entries_max: a log that is longer was not cut in time.
        ledger: is told of every committed entry, once and in order.
    """

    def __init__(self, *, log_entries_max: int, ledger: Ledger | None = None) -> None:
        self._ledger = ledger
        self.elections = 0
        self._looked: dict[str, tuple[int, int]] = {}  # machine -> (life, turns of its host)
        self._log_entries_max = log_entries_max
        self._groups: dict[GroupId, _GroupFacts] = {}
        self._views: dict[tuple[str, GroupId], _View] = {}
        self._votes: dict[tuple[str, GroupId, int], str] = {}
        self._damages: dict[str, list[_Damage]] = {}  # by machine, in order
        self._believed: dict[tuple[str, GroupId], list[EntryId]] = {}

    def damaged(self, machine: Machine) -> None:
        """The disk of a machine that is down was tampered with: what it held may be gone.

        It may have acknowledged what it held, and a leader may yet count that. So up to there, and
        no further, it is believed to hold it, until it does again. Its votes in terms so far may
        be forgotten; those that it casts from now on count.
        """
        name = machine.name
        votes = {key: vote for key, vote in self._votes.items() if key[0] == name}
        durable = {group: view.durable for (of, group), view in self._views.items() if of == name}
        self._damages.setdefault(name, []).append(_Damage(machine.life, votes, durable))
        for key in votes:
            del self._votes[key]
        for group, entry in durable.items():
            self._believed.setdefault((name, group), []).append(entry)

    def repaired(self, machine: Machine) -> None:
        """The last damage was undone before a process served on that disk: it holds everything."""
        damage = self._damages[machine.name].pop()
        self._votes.update(damage.votes)
        for group, entry in damage.durable.items():
            self._believed[machine.name, group].remove(entry)

    def look(self, machine: Machine) -> None:
        """Check everything that has changed.

        Raises:
            Violation: a promise is broken.
        """
        engine = machine.serving
        if engine is None:
            return
        moment = (machine.life, engine.host.turns)
        if self._looked.get(machine.name) == moment:
            return
        self._looked[machine.name] = moment
        for replica in engine.replicas:
            group = replica.group
            journal = group.journal
            facts = (
                group.term, group.is_leader, group.commit_index, group.applied_index,
                group.last_index, journal.last_term, journal.durable_index, journal.synced,
            )  # fmt: skip
            view = self._views.get((machine.name, group.id))
            if view is None or view.life != machine.life:
                view = self._first_look(machine, group, view)
            if view.facts != facts:
                view.facts = facts
                self._check(machine.name, group, view)

    def committed(self, group: GroupId) -> int:
        """The highest index that any replica has called committed."""
        return self._groups[group].last_committed if group in self._groups else 0

    def all_committed(self) -> dict[GroupId, int]:
        """The highest index of every group that any replica has called committed."""
        return {group: known.last_committed for group, known in self._groups.items()}

    # --- inside -------------------------------------------------------------------------------

    def _first_look(self, machine: Machine, group: Group, before: _View | None) -> _View:
        """A process has started: what the one before called durable must be there."""
        damages = self._damages.get(machine.name)
        if before is not None and (not damages or before.life > damages[-1].life):
            index, term = before.durable
            journal = group.journal
            if index > journal.first_index and journal.term_at(index) != term:
                raise Violation(
                    f"{machine.name} called entry {index} of term {term} of group {group.id} "
                    f"durable, and has lost it in a crash (its log ends at {journal.last_index})"
                )
            if journal.getCurrentTerm() < before.term:
                raise Violation(
                    f"{machine.name} had reached term {before.term} of group {group.id}, and is "
                    f"in term {journal.getCurrentTerm()} after a crash"
                )
        view = _View(machine.life)
        self._views[machine.name, group.id] = view
        return view

    def _check(self, name: str, group: Group, view: _View) -> None:
        known = self._groups.setdefault(group.id, _GroupFacts())
        journal = group.journal
        durable = journal.durable_index
        view.durable = (durable, journal.term_at(durable) or 0)
        if self._believed:
            self._believe_what_is_missing(name, group.id, known, view)
        self._check_leader(name, group, known)
        self._check_vote(name, group, view)
        self._check_log(name, group, known, view)
        self._check_commit(name, group, known, view)
        self._check_state(name, group, known, view)
        if len(journal) > self._log_entries_max:
            raise Violation(f"{name}: the log of group {group.id} has {len(journal)} entries")

    def _believe_what_is_missing(
        self, name: str, group: GroupId, known: _GroupFacts, view: _View
    ) -> None:
        """A replica has healed when its disk holds again what it held before it was damaged."""
        believed = self._believed.pop((name, group), [])
        missing = [entry for entry in believed if not _reaches(view.durable, entry, known)]
        if missing:
            self._believed[name, group] = missing

    def _check_leader(self, name: str, group: Group, known: _GroupFacts) -> None:
        """Election safety; and leader completeness when a leadership begins.

        A leader holds what was committed in the terms before its own. Votes may reach it late,
        when a leader of a newer term commits already: what that one commits it may lack.
        """
        if not group.is_leader:
            return
        leader = known.leaders.get(group.term)
        if leader is None:
            known.leaders[group.term] = name
            self.elections += 1
            earlier = (last for term, last in known.committed_by.items() if term < group.term)
            last = max(earlier, default=0)
            held = group.journal.term_at(last) == known.committed.get(last)
            if last > group.journal.first_index and not held:
                raise Violation(
                    f"{name} leads group {group.id} in term {group.term} without entry {last}, "
                    "which is committed"
                )
        elif leader != name:
            raise Violation(f"{leader} and {name} both led group {group.id} in term {group.term}")

    def _check_vote(self, name: str, group: Group, view: _View) -> None:
        """Terms never go back; a durable vote may have been sent, and stays what it was."""
        journal = group.journal
        term, vote = journal.getCurrentTerm(), journal.getVotedForNodeId()
        if term < view.term:
            raise Violation(f"{name}: term of group {group.id} went from {view.term} to {term}")
        if not journal.synced:
            return
        view.term = term
        sworn = None if vote is None else self._votes.setdefault((name, group.id, term), vote)
        if sworn != vote:
            raise Violation(
                f"{name} voted for {sworn} and for {vote} in term {term} of group {group.id}"
            )

    def _check_log(self, name: str, group: Group, known: _GroupFacts, view: _View) -> None:
        """Log matching, by induction: (index, term) decides an entry and the term before it.

        And leader append-only: a leader deletes and replaces nothing in its own log.
        """
        journal = group.journal
        index, term = view.checked
        if index < journal.first_index or journal.term_at(index) != term:
            if index > journal.first_index and _leads_on(group, view):
                raise Violation(
                    f"{name} leads group {group.id} in term {group.term}, and its own entry "
                    f"{index} of term {term} is gone"
                )
            index = max(journal.first_index, min(view.commit, journal.last_index))
        before = journal.term_at(index)
        for command, at, entry_term in journal[index - journal.first_index + 1 :]:
            facts = (before or 0, zlib.crc32(command))
            if known.entries.setdefault((at, entry_term), facts) != facts:
                raise Violation(
                    f"{name} holds another entry {at} of term {entry_term} of group {group.id} "
                    "than others"
                )
            if self._ledger is not None and at > known.recorded:
                known.commands.setdefault(at, {})[entry_term] = command
            before = entry_term
        view.checked = (journal.last_index, journal.last_term)

    def _check_commit(self, name: str, group: Group, known: _GroupFacts, view: _View) -> None:
        """State machine safety: an index is committed with one entry, for ever."""
        journal, commit = group.journal, group.commit_index
        if not view.commit <= commit <= group.last_index:
            raise Violation(
                f"{name}: commit index of group {group.id} went from {view.commit} to {commit}, "
                f"its log ends at {group.last_index}"
            )
        for index in range(max(view.commit, journal.first_index) + 1, commit + 1):
            term = journal.term_at(index) or 0
            if known.committed.setdefault(index, term) != term:
                raise Violation(
                    f"{name} committed entry {index} of group {group.id} with term {term}, "
                    f"others with term {known.committed[index]}"
                )
        if commit > max(view.commit, journal.first_index):
            if group.is_leader or view.led or (self._ledger and commit > known.last_committed):
                self._check_majority(name, group, known)
            if _leads_on(group, view) and journal.term_at(commit) != group.term:
                raise Violation(
                    f"{name}, leader of group {group.id} in term {group.term}, committed entry "
                    f"{commit} of term {journal.term_at(commit)} by itself"
                )
        view.commit, view.led = commit, group.term if group.is_leader else 0
        if self._ledger is not None:
            self._record(self._ledger, name, group, known)
        known.last_committed = max(known.last_committed, commit)
        known.committed_by[group.term] = max(known.committed_by.get(group.term, 0), commit)

    def _record(self, ledger: Ledger, name: str, group: Group, known: _GroupFacts) -> None:
        """Tell the ledger what is committed now; replicas must have the state that it has."""
        index = known.recorded + 1
        while (term := known.committed.get(index)) is not None:
            command = known.commands.get(index, {}).get(term)
            if command is None:
                raise Violation(f"{name} committed entry {index} of group {group.id} unseen")
            del known.commands[index]
            state = ledger.committed(group, command)
            if known.states.setdefault(index, state) != state:
                raise Violation(f"the state of group {group.id} differs at entry {index}")
            known.recorded = index
            index += 1

    def _check_majority(self, name: str, group: Group, known: _GroupFacts) -> None:
        """What a leader commits, by an entry of its term, a majority holds durably (5.3, 5.4.2).

        Also if it stopped leading in the same turn. And where there is a ledger, before anything
        gets into it: the first to call an entry committed may be a follower, whose leader died in
        the turn in which it told so.
        """
        members, commit = group.config.members, group.commit_index
        term = group.journal.term_at(commit) or 0
        holders = [
            member for member in members if self._holds(member, group.id, (commit, term), known)
        ]
        if 2 * len(holders) <= len(members):
            raise Violation(
                f"{name} committed entry {commit} of term {term} of group {group.id}, which only "
                f"{', '.join(holders) or 'nobody'} of {len(members)} members has on disk"
            )

    def _holds(self, member: str, group: GroupId, entry: EntryId, known: _GroupFacts) -> bool:
        """Whether a member has an entry on disk, or had it when its disk was tampered with."""
        view = self._views.get((member, group))
        held = self._believed.get((member, group), ())
        if view is not None:
            held = (view.durable, *held)
        return any(_reaches(durable, entry, known) for durable in held)

    def _check_state(self, name: str, group: Group, known: _GroupFacts, view: _View) -> None:
        """Equal states at equal index, by digest and revision; never applied backwards."""
        applied = group.applied_index
        if not view.applied <= applied <= group.commit_index:
            raise Violation(f"{name}: applied index of {group.id} went {view.applied} → {applied}")
        state = (group.state.digest, group.state.last_revision)
        if known.states.setdefault(applied, state) != state:
            raise Violation(f"{name}: the state of group {group.id} differs at entry {applied}")
        if group.digests.mismatch is not None:
            raise Violation(f"{name}: digest alarm of group {group.id}: {group.digests.mismatch}")
        view.applied = applied


def _leads_on(group: Group, view: _View) -> bool:
    """Whether a replica has led since it was looked at last."""
    return group.is_leader and group.term == view.led


def _reaches(durable: EntryId, entry: EntryId, known: _GroupFacts) -> bool:
    """Whether a log that ends with ``durable`` contains an entry.

    (index, term) decides all that is before it: looked up from the end, until the terms agree.
    What a snapshot stands for is believed.
    """
    index, term = entry
    at, at_term = durable
    while at > index and at_term > term and (facts := known.entries.get((at, at_term))):
        at, at_term = at - 1, facts[0]
    return at >= index and (at_term == term or (at > index and at_term > term))
