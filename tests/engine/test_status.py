"""What nodes tell operators: all that answer, in time, however few they are."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from host_world import GROUP, NAMES, HostWorld, Machine

from raftkv.core.agreed import digest_of
from raftkv.core.cluster_map import ClusterMap, GroupPlacement
from raftkv.core.operations import BATCH_FORMAT, Batch, Command, Put
from raftkv.core.ring import RingParameters
from raftkv.engine.agreement import AgreedFile, Agreement
from raftkv.engine.cluster_status import ASK_TIMEOUT_S, QUESTIONS_MAX, ClusterStatus
from raftkv.engine.directory import Directory
from raftkv.engine.http_traffic import HttpTraffic
from raftkv.engine.peer_wire import CHANNEL_STATUS
from raftkv.engine.router import Router
from raftkv.engine.status import LocalStatus
from raftkv.raft.group import Group
from raftkv.raft.stages import StageDurations
from raftkv.rpc.messages import Facts, Failure
from raftkv.rpc.sizes import SMALL_BYTES
from raftkv.sim.disk import SimDisk
from raftkv.status.facts import (
    ClusterFacts,
    FollowerFacts,
    KeyFacts,
    NodeFacts,
    ReplicaFacts,
    ShardFacts,
)
from raftkv.status.health import health_of

MAP = ClusterMap(1, "test", NAMES, RingParameters("ring", (0,), 8), (GroupPlacement(0, 1, NAMES),))


class StatusLinks:
    """Carries questions between the machines of a world; ``deaf`` ones take them and are silent."""

    def __init__(self, world: HostWorld, name: str) -> None:
        self._world = world
        self._name = name
        self.others: dict[str, ClusterStatus] = {}
        self.deaf: set[str] = set()
        self.refusals: dict[str, str] = {}
        self.sent: dict[str, int] = {}

    @property
    def connected(self) -> frozenset[str]:
        """Peers that can be sent to."""
        return frozenset(b for a, b in self._world.links if a == self._name)

    def is_connected(self, peer: str) -> bool:
        """Whether ``peer`` can be sent to."""
        return peer in self.connected

    def lag_s(self, peer: str) -> float:
        """How late messages may be: not at all."""
        assert peer in NAMES
        return 0.0

    def send(self, peer: str, channel: int, payload: bytes, *, bulk: bool = False) -> bool:
        """Deliver at the end of the turn; what is large must be bulk."""
        assert (channel, bulk) == (CHANNEL_STATUS, len(payload) > SMALL_BYTES)
        self.sent[peer] = self.sent.get(peer, 0) + 1
        if peer not in self.deaf:
            self._world.loop.call_soon(self.others[peer].on_message, self._name, payload)
        return True

    def send_small(self, peer: str, channel: int, payload: bytes) -> bool:
        """No request is forwarded here."""
        raise AssertionError((peer, channel, payload))

    def offer(
        self,
        peer: str,
        channel: int,
        size_bytes: int,
        encode: Callable[[], bytes | None],
        *,
        bytes_max: int,
    ) -> bool:
        """No request is forwarded here."""
        raise AssertionError((peer, channel, size_bytes, encode, bytes_max))

    def round_trip_s(self, peer: str) -> float | None:
        """A millisecond to everybody."""
        return 0.001 if peer in self.connected else None

    def refusal(self, peer: str) -> str | None:
        """What the test says."""
        return self.refusals.get(peer)

    def changed_us(self, peer: str) -> int | None:
        """The same for all."""
        assert peer != self._name
        return 17


def agreement() -> Agreement:
    """Of a node that was agreed with in an earlier life."""
    disk = SimDisk()
    disk.make_directory(Path("/d"))
    record = AgreedFile(disk, Path("/d"))
    record.write(digest_of({}))
    return Agreement(nodes=NAMES, facts={}, record=record, could_not_write=lambda _: None)


class StatusWorld:
    """Three machines of one group, each with what tells of it."""

    def __init__(self) -> None:
        self.hosts = HostWorld()
        self.links = {name: StatusLinks(self.hosts, name) for name in NAMES}
        self.agreements = {name: agreement() for name in NAMES}
        self.local = {name: self._local(self.hosts.machines[name]) for name in NAMES}
        self.status = {name: self._cluster(name) for name in NAMES}
        for links in self.links.values():
            links.others = self.status
        self.leader = self.hosts.leader()
        self.followers = [name for name in NAMES if name != self.leader.name]

    def _local(self, machine: Machine) -> LocalStatus:
        loop = self.hosts.loop
        links = self.links[machine.name]
        router = Router(
            node=machine.name,
            directory=Directory(MAP),
            replicas=machine.host.replicas,
            links=links,
            clock=loop.clock,
            loop=loop.as_asyncio,
        )
        return LocalStatus(
            node=machine.name,
            directory=Directory(MAP),
            host=machine.host,
            router=router,
            http=HttpTraffic(loop.clock),
            durations=StageDurations(),
            links=links,
            agreement=self.agreements[machine.name],
            clock=loop.clock,
            data_path=Path("/nowhere"),
            snapshot_path=lambda _: Path("/nowhere/snapshot"),
        )

    def _cluster(self, name: str) -> ClusterStatus:
        loop = self.hosts.loop
        return ClusterStatus(
            node=name,
            directory=Directory(MAP),
            local=self.local[name],
            links=self.links[name],
            clock=loop.clock,
            loop=loop.as_asyncio,
        )

    def seconds(self, count: int) -> None:
        """Let time pass as a node sees it."""
        for _ in range(count):
            for local in self.local.values():
                local.each_second()
            self.hosts.run(1)

    def ask(self, name: str) -> ClusterFacts:
        """Ask a node about the cluster; its answer went through MessagePack."""
        answers: list[Facts | Failure] = []
        self.status[name].ask(answers.append)
        self.hosts.run_until(lambda: answers, within_s=ASK_TIMEOUT_S + 0.1)
        (answer,) = answers
        assert isinstance(answer, Facts)
        return answer.read(ClusterFacts)


class Counted(tuple[ReplicaFacts, ...]):  # noqa: SLOT001 -- it counts in its dictionary
    """Counts how often it is gone through."""

    times: int

    def __iter__(self) -> Iterator[ReplicaFacts]:
        self.times = getattr(self, "times", 0) + 1
        return super().__iter__()


def test_what_nodes_say_of_their_shards_is_gone_through_once() -> None:
    """However many shards there are: their number squared would keep the engine for seconds."""
    world = StatusWorld()
    shards = 50
    status = world.status["n1"]
    shard_map = ClusterMap(
        1,
        "test",
        NAMES,
        RingParameters("ring", tuple(range(shards)), 8),
        tuple(GroupPlacement(shard, 1, NAMES) for shard in range(shards)),
    )
    status._directory = Directory(shard_map)
    answers = {name: world.local[name].facts() for name in NAMES}
    counted: list[Counted] = []
    for name, facts in answers.items():
        (row,) = facts.shards
        rows = [msgspec.structs.replace(row, shard=shard) for shard in range(shards)]
        counted.append(Counted(rows))
        answers[name] = msgspec.structs.replace(facts, shards=counted[-1])
    merged = status._merged(answers)
    assert [row.shard for row in merged.shards] == list(range(shards))
    assert all(len(row.members or ()) == len(NAMES) for row in merged.shards)
    assert all(shards.times <= 2 for shards in counted)


def test_a_healthy_cluster() -> None:
    """Every replica is told with its lag, contact and digest; nobody is missing."""
    world = StatusWorld()
    world.hosts.put_all(world.leader, b"a", b"b")
    world.seconds(3)
    told = world.ask(world.followers[0])
    assert told.not_answering == ()
    (shard,) = told.shards
    assert (shard.leader, shard.seen_by) == (world.leader.name, world.leader.name)
    assert (shard.quorum, shard.margin, shard.digests) == (True, 1, "agree")
    assert shard.leaders[-1].leader == world.leader.name
    assert shard.leader_since_us == shard.leaders[-1].at_us
    for name in world.followers:
        follower = shard.followers[name]
        assert (follower.lag_entries, follower.lag_s) == (0, 0)
        assert 0 <= (follower.contact_age_s or 0) < 1
        assert (shard.members or {})[name].digest_agreed_index == shard.applied_index
    assert (told.events[-1].kind, told.events[-1].node) == ("leader", world.leader.name)


def test_lag_of_a_follower_that_is_gone() -> None:
    """What it lacks is told in entries and in seconds, and that nobody else may fail."""
    world = StatusWorld()
    absent = world.followers[0]
    world.hosts.machines[absent].kill()
    world.hosts.put_all(world.leader, b"a")
    world.seconds(5)
    told = world.ask(world.leader.name)
    assert told.not_answering == (absent,)
    row = told.named(absent)
    assert row is not None
    assert (row.reachable, row.link_since_us) == (False, 17)
    (shard,) = told.shards
    assert absent not in (shard.members or {})
    assert (shard.margin, shard.quorum) == (0, True)
    follower = shard.followers[absent]
    assert (follower.lag_entries or 0) >= 1
    assert 4 <= (follower.lag_s or 0) <= 6
    assert (follower.contact_age_s or 0) >= 5


def test_what_a_new_leader_has_not_heard_of_a_follower_is_not_made_up() -> None:
    """No index, no lag, no contact: until it answers, whatever the leader before knew of it."""
    world = StatusWorld()
    leader, absent = world.leader, world.followers[0]
    world.hosts.put_all(leader, b"a")
    world.seconds(1)
    world.hosts.machines[absent].kill()
    world.seconds(1)
    leader.group().transfer.begin(world.followers[1], lambda _: None)
    world.seconds(5)
    told = world.ask(world.followers[1])
    (shard,) = told.shards
    assert shard.leader == world.followers[1]
    assert shard.followers[absent] == FollowerFacts(in_touch=False)
    assert shard.match[absent] is None
    heard = shard.followers[leader.name]
    assert (heard.match_index, heard.lag_entries) == (shard.commit_index, 0)


def test_alone() -> None:
    """A node without its peers answers at once, and says that there is no quorum."""
    world = StatusWorld()
    for name in world.followers:
        world.hosts.machines[name].kill()
    world.seconds(5)
    told = world.ask(world.leader.name)
    assert told.not_answering == tuple(sorted(world.followers))
    (shard,) = told.shards
    assert (shard.leader, shard.leader_since_us) == (None, None)
    assert (shard.quorum, shard.margin) == (False, -1)
    assert shard.leaders[-1].leader is None


def test_silent_peers_are_not_waited_for() -> None:
    """A peer that takes the question and says nothing is named when the time is up."""
    world = StatusWorld()
    silent = world.followers[0]
    world.links[world.leader.name].deaf = {silent}
    assert world.ask(world.leader.name).not_answering == (silent,)


def test_many_who_ask_at_once_share_answers() -> None:
    """All facts of all nodes are not fetched once for each; everybody is answered."""
    world = StatusWorld()
    asked = world.status[world.leader.name]
    links = world.links[world.leader.name]
    links.deaf = {world.followers[0]}
    for times in (1, 2):
        answers: list[Facts | Failure] = []
        for _ in range(50):
            asked.ask(answers.append)
        world.hosts.run(ASK_TIMEOUT_S + 0.1)
        assert len(answers) == 50
        for answer in answers:
            assert isinstance(answer, Facts)
            assert answer.read(ClusterFacts).not_answering == (world.followers[0],)
        assert links.sent[world.followers[1]] == times * QUESTIONS_MAX


def test_states_that_differ_are_seen() -> None:
    """Two replicas at the same entry with different digests are an alarm at once."""
    world = StatusWorld()
    world.hosts.put_all(world.leader, b"a")
    world.seconds(2)
    other = world.hosts.machines[world.followers[0]].group(GROUP)
    other.state.apply(Batch(BATCH_FORMAT, 1, 0, (Command(Put(b"a", b"damaged")),)))
    assert world.ask(world.leader.name).shards[0].digests == "differ"


def test_a_refused_node_is_told_with_the_reason() -> None:
    """By those that refuse it, and by itself: it serves nothing, and is not ready."""
    world = StatusWorld()
    odd, other = world.followers
    for name in (world.leader.name, other):
        world.links[odd].refusals[name] = "differs in shards"
        world.links[name].refusals[odd] = "differs in shards"
        world.agreements[odd].differs(name, "differs in shards")
    world.hosts.machines[odd].kill()
    told = world.ask(world.leader.name)
    row = told.named(odd)
    assert row is not None
    assert (row.reachable, row.refused) == (False, "differs in shards")
    assert f"The link to {odd} is refused: differs in shards." in health_of(told).reasons
    (link,) = [link for link in world.local[other].facts().nodes if link.name == odd]
    assert (link.state, link.refused) == ("refused", "differs in shards")
    own = world.ask(odd)
    assert any(reason.startswith(f"{odd} serves nothing") for reason in health_of(own).reasons)
    ready = world.local[odd].ready()
    assert [line for line in ready.failing if line.startswith("cluster map: ")]
    assert world.local[other].ready().ready


def test_explain() -> None:
    """A key comes with the state of its shard as all nodes see it."""
    world = StatusWorld()
    answers: list[Any] = []
    world.status[world.followers[1]].explain(b"\xff{tag}", answers.append)
    world.hosts.run_until(lambda: answers, within_s=1)
    facts = answers[0].read(KeyFacts)
    assert (facts.key_hex, facts.hash_tag) == (b"\xff{tag}".hex(), True)
    assert facts.state is not None
    assert facts.leader == facts.state.leader == world.leader.name
    assert facts.not_answering == ()


def test_a_refused_node_becomes_an_event_once() -> None:
    """Also one that is in no map; told again when the reason changes or it was let in between."""
    world = StatusWorld()
    local, links = world.local["n1"], world.links["n1"]

    def told() -> list[str]:
        local.each_second()
        events = local.facts().events
        return [event.detail for event in events if event.kind == "node_refused"]

    links.refusals |= {"n9": "'n9' is not a node that dials 'n1'", "n2": "another identity"}
    assert told() == told() == ["n2: another identity", "n9: 'n9' is not a node that dials 'n1'"]
    links.refusals["n2"] = "differs"
    assert told()[2:] == ["n2: differs"]
    del links.refusals["n2"]
    told()
    links.refusals["n2"] = "differs"
    assert told()[3:] == ["n2: differs"]


def test_refused_requests_become_one_event() -> None:
    """A burst is one event with what was refused and how often; the next one waits its turn."""
    world = StatusWorld()
    local = world.local["n1"]
    local._router.refused |= {"busy": 40, "no_leader": 2}
    world.seconds(3)
    local._router.refused["busy"] += 5
    world.seconds(12)
    refused = [e.detail for e in local.facts().events if e.kind == "refused"]
    assert refused == ["40 busy, 2 no_leader", "5 busy"]


def test_readiness_names_every_check() -> None:
    """Which checks there are and which fail, a node that stops among them."""
    world = StatusWorld()
    local = world.local[world.leader.name]
    ready = local.ready()
    assert (ready.ready, ready.failing) == (True, ())
    assert [check.name for check in ready.checks] == [
        "shard 0",
        "cluster map",
        "node",
        "disk",
    ]
    local.stopping = True
    for name in world.followers:
        world.hosts.machines[name].kill()
    world.seconds(5)
    assert local.ready().failing == (
        "shard 0: no leader, or not caught up",
        "node: it is stopping",
    )


def test_a_follower_without_a_quorum_is_not_ready() -> None:
    """It may go on believing in its leader; that it has not heard from it for long counts."""
    world = StatusWorld()
    last, other = world.followers
    world.hosts.machines[other].kill()
    world.leader.kill()
    world.seconds(5)
    assert world.local[last].ready().failing == ("shard 0: no leader, or not caught up",)


def test_a_replica_that_is_just_applying_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probes that come at that moment must not take it out; a backlog of a second must."""
    world = StatusWorld()
    world.seconds(2)
    local, group = world.local[world.leader.name], world.leader.group(GROUP)
    local.each_second()
    ahead = group.applied_index + 5
    monkeypatch.setattr(Group, "commit_index", property(lambda _: ahead))
    assert local.ready().failing == ()
    local.each_second()
    assert local.ready().failing == ("shard 0: no leader, or not caught up",)
    monkeypatch.setattr(Group, "applied_index", property(lambda _: ahead))
    assert local.ready().failing == ()


def test_stages_of_writes() -> None:
    """The leader counts where the time of its entries went."""
    world = StatusWorld()
    world.hosts.put_all(world.leader, b"a", b"b")
    stages = world.leader.group().config.durations.by_stage
    assert {stage: sum(counts.histogram().counts) for stage, counts in stages.items()} == {
        "queue": 1,
        "wal": 1,
        "replication": 1,
        "apply": 1,
    }


def shard_of(told: ClusterFacts) -> ShardFacts:
    """The row of the one shard."""
    (row,) = told.shards
    return row


def with_shard(facts: NodeFacts, **changes: object) -> NodeFacts:
    """What a node tells, with something else of its one shard."""
    (row,) = facts.shards
    return msgspec.structs.replace(facts, shards=(msgspec.structs.replace(row, **changes),))


def test_after_a_loss_all_that_is_told_agrees_about_who_leads() -> None:
    """Nobody, since the leader was heard last: in the row, in its history, and of each replica."""
    world = StatusWorld()
    world.seconds(2)
    [survivor, other] = world.followers
    lost_us = world.hosts.loop.clock.time_us()
    for name in (world.leader.name, other):
        world.hosts.machines[name].kill()
    for _ in range(10):
        world.seconds(1)
        row = shard_of(world.ask(survivor))
        explained: list[Any] = []
        world.status[survivor].explain(b"k", explained.append)
        world.hosts.run(ASK_TIMEOUT_S)
        for told in (row, explained[0].read(KeyFacts)):
            assert told.leader is None
            assert told.leader_since_us is None
            assert told.no_leader_since_us is not None
            assert lost_us <= told.no_leader_since_us <= lost_us + 100_000
        assert row.leaders[-1].leader is None
        assert [leader.term for leader in row.leaders] == [1, 1]


def test_a_shard_that_never_had_a_leader_has_had_none_since_the_start() -> None:
    """Operators see for how long nobody could be served."""
    world = StatusWorld()
    started_us = world.hosts.loop.clock.time_us()
    for machine in world.hosts.machines.values():
        machine.kill()
    machine = world.hosts.machines["n1"]
    machine.start()
    world.hosts.run(5.0)
    facts = world._local(machine).facts()
    (row,) = facts.shards
    assert (row.leader, row.leader_since_us) == (None, None)
    assert row.no_leader_since_us == started_us


def test_a_leader_that_says_otherwise_itself_leads_no_more() -> None:
    """It has stepped down, and the others have not noticed yet; who is silent may still lead."""
    world = StatusWorld()
    world.seconds(2)
    name = world.leader.name
    answers = {name: world.local[name].facts() for name in NAMES}
    status = world.status[world.followers[0]]
    without = {other: facts for other, facts in answers.items() if other != name}
    assert shard_of(status._merged(without)).leader == name
    stepped_down = {"role": "follower", "leader": None, "leader_since_us": None}
    for other, facts in answers.items():
        (shard,) = facts.shards
        newest = (shard.applied_index or 0) + 1
        changes = (
            {**stepped_down, "no_leader_since_us": 77}
            if other == name
            else {"applied_index": newest}
        )
        answers[other] = with_shard(facts, **changes)
    row = shard_of(status._merged(answers))
    assert (row.leader, row.leader_since_us, row.no_leader_since_us) == (None, None, 77)


def test_leaders_that_a_replica_missed_are_told_by_the_others() -> None:
    """No term that had a leader is left out, and none is told twice."""
    world = StatusWorld()
    absent = world.followers[0]
    group = world.leader.group()
    group.transfer.begin(world.followers[1], lambda _: None)
    world.hosts.run(2.0)
    row = shard_of(world.ask(absent))
    assert [(entry.term, entry.leader) for entry in row.leaders if entry.leader] == [
        (1, world.leader.name),
        (2, world.followers[1]),
    ]
    answers = {name: world.local[name].facts() for name in NAMES}
    for name in NAMES:  # as if it had been down in the first term
        if name != world.leader.name:
            (shard,) = answers[name].shards
            later = tuple(entry for entry in shard.leaders if entry.term > 1)
            answers[name] = with_shard(answers[name], leaders=later)
    (row,) = world.status[absent]._merged(answers).shards
    assert [entry.term for entry in row.leaders if entry.leader] == [1, 2]


def test_a_leader_that_is_elected_again_is_told_with_its_new_term() -> None:
    """Also if it was the last one before: the term in between is not left out either."""
    world = StatusWorld()
    host, group = world.leader.host, world.leader.group()
    replica = host.replicas.by_id[GROUP]
    known = replica.leaderships
    assert (known.leader, known.term) == (world.leader.name, 1)
    group._replica._stock.term = 3  # stands for two elections within one turn
    host.note_leader(replica)
    assert [(entry.term, entry.leader) for entry in known.facts()[-2:]] == [
        (1, world.leader.name),
        (3, world.leader.name),
    ]
    assert known.changes == 2


def places(value: object, path: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    """Paths to everything in nested facts."""
    inner: list[tuple[object, object]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    return [path, *(place for key, part in inner for place in places(part, (*path, key)))]


def changed(facts: dict[str, Any], path: tuple[object, ...], value: object) -> Any:
    """The facts with something else in one place."""
    copy: Any = msgspec.msgpack.decode(msgspec.msgpack.encode([facts]))
    at, key = copy, 0
    for step in path:
        at, key = at[key], step  # type: ignore[assignment]
    at[key] = value
    return copy[0]


def test_no_facts_of_a_peer_stop_a_node_or_cost_the_link() -> None:
    """Whatever a peer's facts hold: the question is answered, with that peer or without it."""
    world = StatusWorld()
    world.hosts.put_all(world.leader, b"a")
    world.seconds(2)
    asked, peer = world.followers[0], world.leader.name
    facts = msgspec.to_builtins(world.local[peer].facts())
    status, told = world.status[asked], []
    for path in places(facts):
        for value in (None, -1, 2**63, "x", [None], {"a": None}):
            if not path and value is None:
                continue  # that is a question
            answers: list[Facts | Failure] = []
            world.links[asked].deaf = set(NAMES)
            status.ask(answers.append)
            number = status._number
            for other, said in [(world.followers[1], {}), (peer, changed(facts, path, value))]:
                status.on_message(other, msgspec.msgpack.encode((number, said)))
            (answer,) = answers
            assert isinstance(answer, Facts), (path, value)
            cluster = answer.read(ClusterFacts)
            told.append(peer in cluster.not_answering)
            assert world.followers[1] in cluster.not_answering
            msgspec.json.encode([cluster, health_of(cluster).as_facts()])
    assert {True, False} == set(told)


def test_a_status_message_that_cannot_be_read_is_no_answer() -> None:
    """Not MessagePack, or of another shape: nothing is raised, so that the link stays."""
    world = StatusWorld()
    asked = world.leader.name
    for payload in (b"", b"\xc1", msgspec.msgpack.encode([1, 2, 3]), b"\x91" * 5000):
        world.status[asked].on_message(world.followers[0], payload)
    assert world.ask(asked).not_answering == ()


def test_a_bug_in_what_is_told_is_answered_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader is told ``internal``; nothing is raised into the loop."""
    world = StatusWorld()
    asked = world.leader.name

    def broken() -> NodeFacts:
        raise KeyError("a bug")

    monkeypatch.setattr(world.local[asked], "facts", broken)
    answers: list[Facts | Failure] = []
    world.status[asked].ask(answers.append)
    world.status[asked].explain(b"a", answers.append)
    world.hosts.run_until(lambda: len(answers) == 2, within_s=ASK_TIMEOUT_S + 0.1)
    assert [isinstance(a, Failure) and a.code for a in answers] == ["internal", "internal"]
    assert world.ask(world.followers[0]).not_answering == (asked,)
