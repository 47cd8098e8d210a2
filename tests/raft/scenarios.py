"""The hazards of PySyncObj as stories, each ending with the harm that it did.

Every function takes a maker of worlds, tells its story to the world it makes, and returns the harm:
something empty if all went well. Told to stock PySyncObj each returns harm, told to raftkv none
does. Where the harm depends on how much of a message train arrives before a crash, the story is
told once for every prefix, and the harms are gathered.
"""

from collections.abc import Callable
from itertools import count
from typing import TypeVar

from tests.raft.worlds import (
    MakeWorld,
    World,
    applied_twice,
    belied,
    lost,
    two_leaders,
    unanswered,
)

W = TypeVar("W", bound=World)

SETTLE_S = 5.0
"""Enough simulated time for elections and catching up."""


def names(prefix: str, how_many: int) -> list[str]:
    """Names of writes."""
    return [f"{prefix}{number}" for number in range(1, how_many + 1)]


def settle(world: World) -> None:
    """Connect whoever lives and let them come to rest."""
    world.network.connect_all()
    world.run(SETTLE_S)


def led_by_a(make: Callable[..., W], members: str = "abc", **options: object) -> W:
    """A world in which ``a`` leads and everyone holds one committed write."""
    world = make(members, **options)
    world.elect("a")
    world.write("a", "base")
    world.run(0.5)
    return world


def propose_apart(world: World, name: str, values: list[str]) -> None:
    """Propose with a little time between, so that every write is an entry of its own."""
    for value in values:
        world.propose(name, value)
        world.run(0.02)


def answer_slowly(world: World, source: str, target: str) -> None:
    """Deliver what is in flight one by one, with a heartbeat's time after each."""
    for _ in world.network.queued(source, target):
        world.deliver_link(source, target)
        world.run(0.06)


# --- H1, H2, H6, H7: replication ---------------------------------------------------------------


def h1_snapshot_chunk_commits_divergent_entries(make: MakeWorld) -> set[str]:
    """A deposed leader with a divergent tail is caught up by snapshot."""
    world = led_by_a(make)
    world.network.isolate("a")
    world.propose("a", *names("divergent", 10))
    world.run(0.3)
    world.elect("b")
    world.propose("b", *names("real", 30))
    world.run(0.5)
    world.compact("b")
    settle(world)
    return lost(world)


def h2_resends_truncate_acknowledged_entries(make: MakeWorld) -> set[str]:
    """A slow acknowledgement makes the leader send again what the follower holds; it then dies."""
    harm: set[str] = set()
    for prefix in count():
        world = led_by_a(make)
        world.network.isolate("c")
        world.network.hold("b", "a")
        for batch in ("early", "late"):
            world.propose("a", *names(batch, 10), size=10_000)
            world.run(0.1)
        world.network.hold("a", "b")
        answer_slowly(world, "b", "a")
        sent = world.deliver_link("a", "b", prefix)
        world.crash("a")
        settle(world)
        harm |= lost(world)
        if sent < prefix:
            break
    return harm


def h6_failed_snapshot_install_is_acknowledged(make: MakeWorld) -> set[str]:
    """A follower with a long divergent tail is sent a snapshot that it cannot read."""
    world = led_by_a(make, on_disk=True)
    world.network.isolate("a")
    world.propose("a", *names("divergent", 60))
    world.run(0.3)
    world.elect("b")
    world.propose("b", *names("real", 20))
    world.run(0.5)
    world.compact("b")
    world.damage_snapshot("b")
    world.network.isolate("c")
    world.propose("b", *names("late", 5))
    world.network.connect("a", "b")
    world.run(2.0)
    world.crash("b")
    settle(world)
    return lost(world, "late")


def h7_old_snapshot_wipes_newer_entries(make: MakeWorld) -> set[str]:
    """Two refusals in flight make the leader send its snapshot twice; it dies after the first."""
    harm: set[str] = set()
    for prefix in range(20):
        world = led_by_a(make)
        world.network.isolate("c")
        world.write("a", *names("early", 20))
        world.run(0.5)
        world.compact("b")
        world.network.isolate("a")
        world.network.connect("b", "c")
        world.elect("b")
        world.network.hold("c", "b")
        world.propose("b", *names("late", 5))
        world.run(0.15)
        world.network.hold("b", "c")
        answer_slowly(world, "c", "b")
        for _ in range(prefix):
            world.deliver_link("b", "c")
            answer_slowly(world, "c", "b")
        world.crash("b")
        settle(world)
        harm |= lost(world)
    return harm


# --- H3, H4, H5, H8, H9, H16, H18: storage -----------------------------------------------------


def h3_crash_between_dump_and_truncation(make: MakeWorld) -> set[str]:
    """A follower crashes when its dump is written and its log not yet trimmed."""
    world = led_by_a(make, on_disk=True)
    world.network.isolate("c")
    world.write("a", *names("early", 10))
    world.run(0.5)
    world.propose("a", *names("late", 10))
    world.run(2.0, until=lambda: world.acknowledged >= set(names("late", 10)))
    world.network.cut("a", "b")  # before b hears that the late ones are committed
    world.compact("b", finish=False)
    world.crash("b")
    world.crash("a")
    world.start("b")
    settle(world)
    return lost(world)


def h5_damaged_snapshot_is_ignored(make: MakeWorld) -> set[str]:
    """A bit of the snapshot flips between two lives of a single replica."""
    world = led_by_a(make, "a", on_disk=True)
    world.write("a", *names("early", 10))
    world.compact("a")
    world.crash("a")
    world.damage_snapshot("a")
    with world.catching():
        world.start("a")
    settle(world)
    return lost(world)


def h8_power_loss_forgets_acknowledged_entries(make: MakeWorld) -> set[str]:
    """Power fails on all machines after writes were acknowledged."""
    world = led_by_a(make, on_disk=True)
    for name in world.names:
        world.write_back(name)
    world.write("a", *names("late", 10))
    world.run(0.5)
    for name in world.names:
        world.lose_power(name)
    for name in world.names:
        world.start(name)
    settle(world)
    return lost(world)


def h8_power_loss_forgets_a_vote(make: MakeWorld) -> dict[int, set[str]]:
    """A voter's power fails after its vote left, and another candidate asks it in the same term."""
    world = make("abc", on_disk=True)
    world.network.isolate("c")
    world.elect("a")
    world.network.isolate("a")
    world.lose_power("b")
    world.start("b")
    world.network.connect("b", "c")
    world.elect("c")
    return two_leaders(world)


def h9_commit_index_beyond_the_log(make: MakeWorld) -> set[str]:
    """Power takes the log's tail, not the commit index; the restarted leader is then cut off."""
    world = led_by_a(make, on_disk=True)
    for name in world.names:
        world.write_back(name)
    world.write("a", *names("early", 10))
    world.run(2.0)
    for name in world.names:
        world.write_back(name, log=False)
        world.lose_power(name)
    for name in world.names:
        world.start(name)
    world.network.connect_all()
    world.elect("a")
    world.network.isolate("a")
    world.propose("a", "alone")
    world.run(1.0)
    world.crash("a")
    settle(world)
    return lost(world, "alone")


def h16_log_is_trimmed_without_a_snapshot(make: MakeWorld) -> set[str]:
    """A snapshot is written in the background; the replica is killed afterwards."""
    world = led_by_a(make, "a", on_disk=True, background_snapshots=True)
    world.write("a", *names("early", 10))
    world.compact("a")
    world.crash("a")
    world.start("a")
    settle(world)
    return lost(world)


def h18_full_disk_parts_memory_and_log(make: MakeWorld) -> set[str]:
    """A follower's disk is full for a moment; leader and follower then crash."""
    world = led_by_a(make, on_disk=True)
    world.network.isolate("c")
    world.fill_disk("b")
    world.propose("a", "unlucky")
    world.run(0.5)
    world.free_disk("b")
    world.propose("a", "later")
    world.run(1.0)
    if "b" in world.live:  # a replica may also stop when its disk fails
        world.crash("b")
    world.crash("a")
    world.start("b")
    settle(world)
    return lost(world)


def h19_emptied_disk_votes_again(make: MakeWorld) -> set[str]:
    """A replica that holds one of two copies comes back with an empty disk under its name."""
    world = led_by_a(make, on_disk=True)
    world.network.isolate("c")
    world.write("a", "precious")
    world.network.isolate("a")
    world.wipe("b")
    with world.catching():
        world.start("b")
    if "b" in world.live:
        world.network.connect("b", "c")
    world.run(SETTLE_S)
    return lost(world)


def h20_leader_with_a_dead_disk(make: MakeWorld) -> set[str]:
    """The leader's disk takes nothing more, while two healthy replicas hear its heartbeats."""
    world = led_by_a(make, on_disk=True)
    world.stall_disk("a")
    world.propose("a", "first")
    world.run(SETTLE_S)
    for name in sorted(world.live):
        if world.leads(name):
            world.propose(name, f"then-{name}")
    world.run(SETTLE_S)
    return set() if any(value.startswith("then") for value in world.acknowledged) else {"stuck"}


# --- H10, H11: whose answer, to which question --------------------------------------------------


def h10_acknowledgement_of_an_older_term_counts(make: MakeWorld) -> set[str]:
    """An acknowledgement of term 1 arrives when its receiver leads again, with another log."""
    world = led_by_a(make, "abcde")
    network = world.network
    network.partition("ab", "cde")
    network.hold("b", "a")
    propose_apart(world, "a", names("divergent", 10))
    world.run(0.2)  # b holds them, and its acknowledgements are on their slow way
    world.elect("c")
    world.run(0.2)
    network.connect_all()
    world.run(0.2)  # c's log replaces the divergent entries on a and b
    network.isolate("c")
    world.elect("a")
    world.run(0.2)
    network.isolate("e")
    network.hold("a", "b")
    propose_apart(world, "a", names("late", 3))
    network.release("b", "a")
    world.run(0.2)
    world.crash("a")
    world.crash("d")  # two of five are gone, as five must survive
    settle(world)
    return lost(world)


def h11_one_voter_counts_twice(make: MakeWorld) -> dict[int, set[str]]:
    """One of five voters' answers is delivered again and again; the others elect someone else."""
    world = make("abcde")
    world.network.partition("ab", "cde")
    world.campaign("a")
    for event in tuple(world.network.trace):
        if event.what == "send" and event.link == ("b", "a"):
            world.network.send("b", "a", event.payload)
    world.deliver()
    world.elect("c")
    return two_leaders(world)


# --- H12 to H15, H21: what clients are told -----------------------------------------------------


def h12_callback_that_raises(make: MakeWorld) -> set[str]:
    """The function that should tell the writer raises."""
    world = led_by_a(make, "a")

    def raising(_: object) -> None:
        raise ZeroDivisionError("raised by a callback")

    with world.catching():
        world.submit("a", "once", raising, 0)
    world.run(0.5)
    return applied_twice(world)


def h13_large_entries(make: MakeWorld) -> set[str]:
    """Writes are some times larger than a message, or a few bytes less than that."""
    harm: set[str] = set()
    for size in range(4 * 2**16 - 64, 4 * 2**16 + 1, 8):
        world = led_by_a(make)
        world.propose("a", f"large-{size}", size=size)
        world.run(1.0)
        harm |= set(world.answers) - world.acknowledged
        harm |= {f"size {size}: {error!r}" for error in world.errors}
    return harm


def h14_writers_never_answered(make: MakeWorld) -> set[str]:
    """A leader loses its leadership with writes waiting, and nobody writes any more."""
    world = led_by_a(make)
    world.network.isolate("a")
    propose_apart(world, "a", names("waiting", 10))
    world.elect("b")
    settle(world)
    world.run(60.0)
    return unanswered(world)


def h15_deposed_leader_serves_stale_reads(make: MakeWorld) -> set[str]:
    """A cut-off leader is read after another one has acknowledged a write."""
    world = led_by_a(make)
    world.network.isolate("a")
    world.elect("b")
    world.write("b", "news")
    read = world.read("a")
    world.run(1.0)
    return set() if read.values is None else world.acknowledged - set(read.values)


def h21_queued_write_survives_its_leadership(make: MakeWorld) -> set[str]:
    """A write waits in the leader's queue when a newer leader makes itself known."""
    world = led_by_a(make)
    world.network.isolate("a")
    world.elect("b")
    world.run(0.2)
    world.network.connect("a", "b")
    world.run(1.0, until=lambda: bool(world.network.queued("b", "a")))
    world.propose("a", "late")
    world.network.deliver_link("b", "a", 1)
    settle(world)
    return belied(world) | {value for value in world.values("b") if value == "late"}
