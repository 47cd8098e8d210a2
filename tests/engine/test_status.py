"""What nodes tell operators: all that answer, in time, however few they are."""

from pathlib import Path
from typing import Any

import msgspec
from host_world import GROUP, NAMES, HostWorld, Machine

from raftkv.core.agreed import digest_of
from raftkv.core.cluster_map import ClusterMap, GroupPlacement
from raftkv.core.health import health_of
from raftkv.core.operations import BATCH_FORMAT, Batch, Command, Put
from raftkv.core.ring import RingParameters
from raftkv.engine.agreement import AgreedFile, Agreement
from raftkv.engine.cluster_status import ASK_TIMEOUT_S, CHANNEL_STATUS, ClusterStatus
from raftkv.engine.http_traffic import HttpTraffic
from raftkv.engine.router import Router
from raftkv.engine.status import LocalStatus
from raftkv.raft.stages import StageDurations
from raftkv.sim.disk import SimDisk

MAP = ClusterMap(1, "test", NAMES, RingParameters("ring", (0,), 8), (GroupPlacement(0, 1, NAMES),))


class StatusLinks:
    """Carries questions between the machines of a world; ``deaf`` ones take them and are silent."""

    def __init__(self, world: HostWorld, name: str) -> None:
        self._world = world
        self._name = name
        self.others: dict[str, ClusterStatus] = {}
        self.deaf: set[str] = set()
        self.refusals: dict[str, str] = {}

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
        """Deliver at the end of the turn."""
        assert (channel, bulk) == (CHANNEL_STATUS, False)
        if peer not in self.deaf:
            self._world.loop.call_soon(self.others[peer].on_message, self._name, payload)
        return True

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
        loop: Any = self.hosts.loop
        links = self.links[machine.name]
        router = Router(
            node=machine.name,
            cluster_map=MAP,
            groups=machine.host.groups,
            links=links,
            clock=loop,
            loop=loop,
        )
        return LocalStatus(
            node=machine.name,
            cluster_map=MAP,
            host=machine.host,
            router=router,
            http=HttpTraffic(loop),
            durations=StageDurations(),
            links=links,
            agreement=self.agreements[machine.name],
            clock=loop,
            data_path=Path("/nowhere"),
            snapshot_path=lambda _: Path("/nowhere/snapshot"),
        )

    def _cluster(self, name: str) -> ClusterStatus:
        loop: Any = self.hosts.loop
        return ClusterStatus(
            node=name,
            cluster_map=MAP,
            local=self.local[name],
            links=self.links[name],
            clock=loop,
            loop=loop,
        )

    def seconds(self, count: int) -> None:
        """Let time pass as a node sees it."""
        for _ in range(count):
            for local in self.local.values():
                local.each_second()
            self.hosts.run(1)

    def ask(self, name: str) -> dict[str, Any]:
        """Ask a node about the cluster; its answer went through MessagePack as JSON would."""
        answers: list[dict[str, Any]] = []
        self.status[name].ask(answers.append)
        self.hosts.run_until(lambda: answers, within_s=ASK_TIMEOUT_S + 0.1)
        decoded: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(answers[0]))
        return decoded


def test_a_healthy_cluster() -> None:
    """Every replica is told with its lag, contact and digest; nobody is missing."""
    world = StatusWorld()
    world.hosts.put_all(world.leader, b"a", b"b")
    world.seconds(3)
    told = world.ask(world.followers[0])
    assert told["not_answering"] == []
    (shard,) = told["shards"]
    assert (shard["leader"], shard["seen_by"]) == (world.leader.name, world.leader.name)
    assert (shard["quorum"], shard["margin"], shard["digests"]) == (True, 1, "agree")
    assert shard["leaders"][-1]["leader"] == world.leader.name
    assert shard["leader_since_us"] == shard["leaders"][-1]["at_us"]
    for name in world.followers:
        follower = shard["followers"][name]
        assert (follower["lag_entries"], follower["lag_s"]) == (0, 0)
        assert 0 <= follower["contact_age_s"] < 1
        assert shard["members"][name]["digest_agreed_index"] == shard["applied_index"]
    assert (told["events"][-1]["kind"], told["events"][-1]["node"]) == ("leader", world.leader.name)


def test_lag_of_a_follower_that_is_gone() -> None:
    """What it lacks is told in entries and in seconds, and that nobody else may fail."""
    world = StatusWorld()
    absent = world.followers[0]
    world.hosts.machines[absent].kill()
    world.hosts.put_all(world.leader, b"a")
    world.seconds(5)
    told = world.ask(world.leader.name)
    assert told["not_answering"] == [absent]
    row = next(node for node in told["nodes"] if node["name"] == absent)
    assert (row["reachable"], row["link_since_us"]) == (False, 17)
    (shard,) = told["shards"]
    assert absent not in shard["members"]
    assert (shard["margin"], shard["quorum"]) == (0, True)
    follower = shard["followers"][absent]
    assert follower["lag_entries"] >= 1
    assert 4 <= follower["lag_s"] <= 6
    assert follower["contact_age_s"] >= 5


def test_alone() -> None:
    """A node without its peers answers at once, and says that there is no quorum."""
    world = StatusWorld()
    for name in world.followers:
        world.hosts.machines[name].kill()
    world.seconds(5)
    told = world.ask(world.leader.name)
    assert told["not_answering"] == sorted(world.followers)
    (shard,) = told["shards"]
    assert (shard["leader"], shard["leader_since_us"]) == (None, None)
    assert (shard["quorum"], shard["margin"]) == (False, -1)
    assert shard["leaders"][-1]["leader"] is None


def test_silent_peers_are_not_waited_for() -> None:
    """A peer that takes the question and says nothing is named when the time is up."""
    world = StatusWorld()
    silent = world.followers[0]
    world.links[world.leader.name].deaf = {silent}
    assert world.ask(world.leader.name)["not_answering"] == [silent]


def test_states_that_differ_are_seen() -> None:
    """Two replicas at the same entry with different digests are an alarm at once."""
    world = StatusWorld()
    world.hosts.put_all(world.leader, b"a")
    world.seconds(2)
    other = world.hosts.machines[world.followers[0]].group(GROUP)
    other.state.apply(Batch(BATCH_FORMAT, 1, 0, (Command(Put(b"a", b"damaged")),)))
    assert world.ask(world.leader.name)["shards"][0]["digests"] == "differ"


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
    row = next(node for node in told["nodes"] if node["name"] == odd)
    assert (row["reachable"], row["refused"]) == (False, "differs in shards")
    assert f"The link to {odd} is refused: differs in shards." in health_of(told).reasons
    (link,) = [link for link in world.local[other].facts()["nodes"] if link["name"] == odd]
    assert (link["state"], link["refused"]) == ("refused", "differs in shards")
    own = world.ask(odd)
    assert any(reason.startswith(f"{odd} serves nothing") for reason in health_of(own).reasons)
    ready = world.local[odd].ready()
    assert [line for line in ready["failing"] if line.startswith("cluster map: ")]
    assert world.local[other].ready()["ready"]


def test_explain() -> None:
    """A key comes with the state of its shard as all nodes see it."""
    world = StatusWorld()
    answers: list[Any] = []
    world.status[world.followers[1]].explain(b"\xff{tag}", answers.append)
    world.hosts.run_until(lambda: answers, within_s=1)
    facts = answers[0].facts
    assert (facts["key_hex"], facts["hash_tag"]) == (b"\xff{tag}".hex(), True)
    assert facts["leader"] == facts["state"]["leader"] == world.leader.name
    assert facts["not_answering"] == []


def test_a_refused_node_becomes_an_event_once() -> None:
    """Also one that is in no map; told again when the reason changes or it was let in between."""
    world = StatusWorld()
    local, links = world.local["n1"], world.links["n1"]

    def told() -> list[str]:
        local.each_second()
        events = local.facts()["events"]
        return [event["detail"] for event in events if event["kind"] == "node_refused"]

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
    refused = [e["detail"] for e in local.facts()["events"] if e["kind"] == "refused"]
    assert refused == ["40 busy, 2 no_leader", "5 busy"]


def test_readiness_names_every_check() -> None:
    """Which checks there are and which fail, a node that stops among them."""
    world = StatusWorld()
    local = world.local[world.leader.name]
    ready = local.ready()
    assert (ready["ready"], ready["failing"]) == (True, [])
    assert [check["name"] for check in ready["checks"]] == [
        "shard 0",
        "cluster map",
        "node",
        "disk",
    ]
    local.stopping = True
    for name in world.followers:
        world.hosts.machines[name].kill()
    world.seconds(5)
    assert local.ready()["failing"] == [
        "shard 0: no leader, or not caught up",
        "node: it is stopping",
    ]


def test_a_follower_without_a_quorum_is_not_ready() -> None:
    """It may go on believing in its leader; that it has not heard from it for long counts."""
    world = StatusWorld()
    last, other = world.followers
    world.hosts.machines[other].kill()
    world.leader.kill()
    world.seconds(5)
    assert world.local[last].ready()["failing"] == ["shard 0: no leader, or not caught up"]


def test_stages_of_writes() -> None:
    """The leader counts where the time of its entries went."""
    world = StatusWorld()
    world.hosts.put_all(world.leader, b"a", b"b")
    stages = world.leader.group().config.durations.by_stage
    assert {stage: sum(counts.facts()["counts"]) for stage, counts in stages.items()} == {
        "queue": 1,
        "wal": 1,
        "replication": 1,
        "apply": 1,
    }
