"""Stories of hazards as text files: what happens, and who then sent what to whom.

A file in ``testdata`` is a list of steps. Under each stands, after ``----``, what came of it: the
messages that were sent, delivered and lost (nothing that only repeats itself is drawn), and what
replicas and writers say. The manner is that of etcd-io/raft's ``testdata``.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from raftkv.raft import messages as wire
from raftkv.sim.network import Event
from tests.raft.group_world import GroupWorld, make_group_world, message_of
from tests.raft.worlds import ELECTION_S, belied, lost, two_leaders, unanswered

TESTDATA = Path(__file__).parent / "testdata"

SEPARATOR = "----"


class Step(msgspec.Struct, frozen=True):
    """One command with what is expected of it, and the comment above it."""

    comment: str
    command: str
    expected: str


def steps_of(path: Path) -> Iterator[Step]:
    """Read a file."""
    for block in re.split(r"\n\n(?=#|[a-z])", path.read_text().strip()):
        lines = block.splitlines()
        comment = [line for line in lines if line.startswith("#")]
        command, *rest = lines[len(comment) :] or [""]
        expected = rest[1:] if rest[:1] == [SEPARATOR] else rest
        yield Step("\n".join(comment), command, "\n".join(expected))


def played(path: Path) -> str:
    """Play the steps of a file; return the file as it should be."""
    stage, blocks = Stage(), []
    for step in steps_of(path):
        lines = [step.comment] if step.comment else []
        if step.command:
            drawn = stage.play(step.command)
            lines += [step.command, SEPARATOR, *(drawn or ["nothing is sent"])]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


class Stage:
    """A world, what can be done to it by name, and what of it has been drawn."""

    world: GroupWorld

    def __init__(self) -> None:
        self._drawn = -1
        self._said: dict[tuple[str, str], str] = {}

    def play(self, command: str) -> list[str]:
        """Do what a line says; return the picture of what came of it."""
        verb, *words = command.split()
        done: Callable[..., list[str] | None] = getattr(self, f"do_{verb.replace('-', '_')}")
        said = done(*words) or []
        return [*self._picture(), *said]

    # --- what happened ------------------------------------------------------------------------

    def _picture(self) -> list[str]:
        """New messages, in a line those of one moment to several, or from several to one."""
        told: list[tuple[str, str, str]] = []
        for event in list(self.world.network.trace):
            if event.number <= self._drawn or event.what != "send":
                continue
            self._drawn = event.number
            if isinstance(message_of(event), wire.DigestCheck):
                continue  # a leader says it every second
            line, (source, target) = described(event), event.link
            if line == self._said.get((source, target)):
                continue
            self._said[source, target] = line
            before = told[-1] if told else ("", "", "")
            if before[2] == line and source == before[0]:
                told[-1] = (source, before[1] + target, line)
            elif before[2] == line and target == before[1]:
                told[-1] = (before[0] + source, target, line)
            else:
                told.append((source, target, line))
        return [f"{sources:>4} -> {targets:4}  {line}" for sources, targets, line in told]

    # --- what can be done ---------------------------------------------------------------------

    def do_start(self, names: str) -> None:
        """Start a group, all connected."""
        self.world = make_group_world(names)
        self.world.random = Random(0)

    def do_elect(self, name: str) -> list[str]:
        """Let nobody else stand."""
        self.world.elect(name)
        return [f"{name} leads in term {self.world.term(name)}"]

    def do_campaign(self, name: str) -> list[str]:
        """Let it stand once."""
        leads = self.world.campaign(name)
        return [f"{name} {'leads' if leads else 'does not lead'}"]

    def do_propose(self, name: str, *values: str) -> None:
        """Hand in writes, together."""
        self.world.propose(name, *values)
        self.world.turn(name)

    def do_run(self, seconds: str) -> None:
        """Let time pass."""
        self.world.run(float(seconds))

    def do_isolate(self, name: str) -> None:
        """Cut all its links."""
        self.world.network.isolate(name)

    def do_connect(self, *pair: str) -> None:
        """Connect two, or all."""
        if pair:
            self.world.network.connect(*pair)
        else:
            self.world.network.connect_all()

    def do_partition(self, *sides: str) -> None:
        """Cut the links between sides."""
        self.world.network.partition(*sides)

    def do_hold(self, source: str, target: str) -> None:
        """Let messages of one direction wait."""
        self.world.network.hold(source, target)

    def do_hold_all(self, name: str) -> None:
        """Let messages from and to one wait, on all its links."""
        for other in self.world.names:
            if other != name:
                self.world.network.hold(name, other)
                self.world.network.hold(other, name)

    def do_expire(self, name: str) -> None:
        """Its election time-out is over."""
        self.world.clock.advance(ELECTION_S)
        self.world.expire(name)
        self.world.turn(name)

    def do_release(self, source: str, target: str) -> None:
        """Let them come."""
        self.world.network.release(source, target)

    def do_deliver(self, source: str, target: str, count: str = "1") -> list[str]:
        """Deliver so many of them."""
        return [f"{self.world.deliver_link(source, target, int(count))} delivered"]

    def do_repeat(self, source: str, target: str, *words: str) -> None:
        """Send once more the last message of that direction that has these words in its line."""
        sent = [
            event.payload
            for event in self.world.network.trace
            if event.what == "send"
            and event.link == (source, target)
            and " ".join(words) in described(event)
        ]
        self._said.pop((source, target), None)
        self.world.network.send(source, target, sent[-1])
        self.world.deliver()

    def do_crash(self, *names: str) -> None:
        """Kill, the kernel keeps what it was given."""
        for name in names:
            self.world.crash(name)

    def do_lose_power(self, *names: str) -> None:
        """Keep what was synced only."""
        for name in names:
            self.world.lose_power(name)

    def do_restart(self, *names: str) -> None:
        """On what the disks hold; links stay down."""
        for name in names:
            with self.world.catching():
                self.world.start(name)

    def do_compact(self, name: str) -> None:
        """Write a snapshot and drop the log that it covers."""
        self.world.compact(name)

    def do_damage_snapshot(self, name: str) -> None:
        """Flip a bit of it."""
        self.world.damage_snapshot(name)

    def do_stall_disk(self, name: str) -> None:
        """A sync begins and does not end."""
        self.world.stall_disk(name)

    def do_fill_disk(self, name: str) -> None:
        """No space from now on."""
        self.world.fill_disk(name)

    def do_wipe(self, name: str) -> None:
        """Put an empty disk in its place."""
        self.world.wipe(name)

    def do_read(self, name: str) -> list[str]:
        """Read linearizably, and wait for a second."""
        read = self.world.read(name)
        self.world.run(1.0)
        found = "no answer" if read.values is None else " ".join(read.values)
        return [f"{name} reads: {found}"]

    # --- what can be asked --------------------------------------------------------------------

    def do_logs(self) -> list[str]:
        """Where each log stands: (last index and its term), committed, applied."""
        lines = []
        for name in sorted(self.world.live):
            group = self.world.nodes[name].group
            journal = group.journal
            lines.append(
                f"{name}: term {group.term} {'leader  ' if group.is_leader else 'follower'}"
                f" log {journal.first_index}..{journal.last_index}/{journal.last_term}"
                f" durable {journal.durable_index} committed {group.commit_index}"
                f" applied {' '.join(self.world.values(name)) or 'nothing'}"
            )
        dead = sorted(set(self.world.names) - self.world.live)
        return [*lines, *(f"{name}: does not run" for name in dead)]

    def do_answers(self) -> list[str]:
        """What writers were told."""
        return [f"{v}: {' '.join(told) or 'nothing'}" for v, told in self.world.answers.items()]

    def do_harm(self) -> list[str]:
        """What must never be."""
        world = self.world
        found = {
            "lost": sorted(lost(world)),
            "told no and applied": sorted(belied(world)),
            "never answered": sorted(unanswered(world)),
            "two leaders in terms": sorted(two_leaders(world)),
        }
        return [f"{what}: {of}" for what, of in found.items() if of] or ["none"]

    def do_errors(self) -> list[str]:
        """Why replicas stopped."""
        return [type(error).__name__ for error in self.world.errors] or ["none"]


def described(event: Event) -> str:
    """One message in a line; entries as the indexes that they have, with the term of the last."""
    message: Any = message_of(event)
    return _LINES[type(message)](message)


def _append(m: wire.AppendEntries) -> str:
    what = "heartbeat"
    if m.entries:
        what = f"entries {m.prev_index + 1}..{m.prev_index + len(m.entries)}/{m.entries[-1][1]}"
    after = f"after {m.prev_index}/{m.prev_term}"
    return f"append    term {m.term}: {what} {after}, committed {m.commit_index}"


def _response(m: wire.AppendResponse) -> str:
    if m.success:
        return f"has       term {m.term}: up to {m.next_index - 1}"
    return f"refuses   term {m.term}: differs at {m.refused}, wants {m.next_index}"


def _log(m: wire.RequestVote | wire.PreVote) -> str:
    return f"term {m.term}: log ends {m.last_log_index}/{m.last_log_term}"


def _chunk(m: wire.SnapshotChunk) -> str:
    return f"snapshot  term {m.term}: of entry {m.index}/{m.last_term}, from byte {m.offset}"


def _progress(m: wire.SnapshotProgress) -> str:
    return f"got       term {m.term}: snapshot {m.index}{'' if m.in_order else ', not in order'}"


_LINES: dict[type, Callable[[Any], str]] = {
    wire.AppendEntries: _append,
    wire.AppendResponse: _response,
    wire.RequestVote: lambda m: f"asks vote {_log(m)}",
    wire.VoteResponse: lambda m: f"votes     term {m.term}",
    wire.PreVote: lambda m: f"would you {_log(m)}",
    wire.PreVoteResponse: lambda m: f"{'would' if m.granted else 'would not':9} term {m.term}",
    wire.TimeoutNow: lambda m: f"lead now  term {m.term}",
    wire.HigherTerm: lambda m: f"is in     term {m.term}",
    wire.ConfirmLeader: lambda m: f"do I lead term {m.term}",
    wire.LeaderConfirmed: lambda m: f"you lead  term {m.term}",
    wire.FreshnessQuery: lambda _: "how old am I",
    wire.FreshnessEcho: lambda m: f"committed {m.commit_index} when you asked",
    wire.SnapshotChunk: _chunk,
    wire.SnapshotProgress: _progress,
    wire.DigestCheck: lambda m: f"digest    at {m.index}",
}
