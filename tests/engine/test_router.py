"""The router: every request finds its leader, and is told the truth about what happened."""

import msgspec
import pytest
from engine_world import RouterWorld

from raftkv.core.operations import (
    Command,
    Compare,
    Delete,
    DeleteResult,
    FreeKey,
    Get,
    GetResult,
    Put,
    PutResult,
    Range,
    Refused,
    Txn,
    TxnResult,
)
from raftkv.core.shard.expiry import LIFETIME_S
from raftkv.engine.connection import LinkLimits
from raftkv.engine.peer_wire import CHANNEL_CALL, CHANNEL_REPLY
from raftkv.engine.router import CALL_LAG_S_MAX, DETOUR_AFTER_S, HOPS_MAX
from raftkv.raft.proposals import GroupFailure
from raftkv.raft.reads import Voucher
from raftkv.rpc.messages import (
    BatchRequest,
    BatchResult,
    Call,
    Failure,
    GetRequest,
    Reply,
    Request,
    Response,
    ScanRequest,
    Served,
    TransferRequest,
    WriteRequest,
)
from raftkv.rpc.web_config import Limits as RequestLimits

NO_LEADER = Failure("no_leader", "not here", definite=True)
LED_BY_N2 = Served("n2", 0, 1)


@pytest.fixture
def world() -> RouterWorld:
    """Node n1 of three, two shards, no leader yet."""
    return RouterWorld()


def put(key: bytes, idempotency: str | None = None) -> WriteRequest:
    """Make a put, with an idempotency key if one is named."""
    name = None if idempotency is None else FreeKey(idempotency)
    return WriteRequest(Command(Put(key, b"v"), name))


# --- where requests go -------------------------------------------------------------------------


def test_leader_serves_itself(world: RouterWorld) -> None:
    """A write and a read of a shard led here are answered here, saying shard and term."""
    world.lead(0, 1)
    world.ask(put(world.key(1)))
    assert isinstance(world.response, PutResult)
    assert world.replies[0].served == Served("n1", 1, 1)
    world.ask(GetRequest(world.key(1)))
    assert isinstance(world.replies[1].response, GetResult)


def test_follower_forwards_to_the_leader(world: RouterWorld) -> None:
    """A request for a shard led elsewhere goes there with the time that is left."""
    world.follow("n3", 0, 1)
    world.ask(put(world.key(0)), remaining_ms=500)
    [(to, call)] = world.links.calls()
    assert (to, call.hops, call.map_epoch) == ("n3", 1, 1)
    assert 0 < call.remaining_ms <= 500
    world.answer(call, PutResult(7, 1), "n3", 0)
    assert world.response == PutResult(7, 1)
    assert world.replies[0].served.node == "n3"


def test_who_forwards_vouches_for_its_term(world: RouterWorld) -> None:
    """A replica says its group's term; the leader hands that on with the read, also of a batch."""
    world.follow("n3", 0)
    world.group(0).term = 7
    world.ask(GetRequest(world.key(0)))
    [(_, call)] = world.links.calls()
    assert call.term == 7
    world.lead(0)
    for request in (call.request, BatchRequest((GetRequest(world.key(0)),), shard=0)):
        payload = msgspec.msgpack.encode(Call(1, 1000, request, hops=1, term=7))
        world.router.on_call("n2", payload)
    world.ask(GetRequest(world.key(0)))
    assert world.group(0).vouchers == [Voucher("n2", 7), Voucher("n2", 7), None]


def test_waits_for_a_leader(world: RouterWorld) -> None:
    """Without a leader a request waits, and goes on once one is known."""
    world.ask(put(world.key(0)))
    world.loop.run(0.3)
    assert not world.replies
    world.lead(0)
    world.router.leader_changed()
    world.loop.run(0.001)
    assert isinstance(world.response, PutResult)


def test_a_replica_that_reaches_no_leader_asks_another_one(world: RouterWorld) -> None:
    """In a partial partition one that hears the leader passes it on; elections are waited for."""
    world.follow("n2", 0)
    world.links.connected = frozenset({"n3"})
    world.ask(put(world.key(0)), remaining_ms=5000)
    world.loop.run(0.9 * DETOUR_AFTER_S)
    assert not world.links.calls()
    world.loop.run(0.2 * DETOUR_AFTER_S)
    [(to, call)] = world.links.calls()
    assert (to, call.hops) == ("n3", 1)
    world.router.on_reply(
        "n3", msgspec.msgpack.encode(Reply(call.id, PutResult(1, 1), LED_BY_N2, 1))
    )
    assert world.response == PutResult(1, 1)
    world.ask(put(world.key(0, 1)))
    [(to, _)] = world.links.calls()
    assert to == "n3", "at once from now on"


def test_another_replica_that_knows_no_leader_is_not_asked_again_at_once(
    world: RouterWorld,
) -> None:
    """While nobody leads, requests wait instead of going to and fro."""
    world.follow(None, 0)
    world.ask(put(world.key(0)), remaining_ms=10_000)
    world.loop.run(1.1 * DETOUR_AFTER_S)
    [(to, call)] = world.links.calls()
    world.answer(call, NO_LEADER, to)
    world.loop.run(0.9 * DETOUR_AFTER_S)
    assert not world.links.calls()
    world.lead(0)
    world.router.leader_changed()
    world.loop.run(0.001)
    assert isinstance(world.response, PutResult)


def test_a_call_that_another_node_forwards_goes_no_further_without_a_leader(
    world: RouterWorld,
) -> None:
    """It is refused, definitely, however long there has been no leader: calls must not circle."""
    world.follow(None, 0)
    world.ask(put(world.key(0)), remaining_ms=10_000)
    world.loop.run(2 * DETOUR_AFTER_S)
    world.links.calls()
    call = Call(7, 1000, put(world.key(0)), world.map.epoch, hops=1)
    world.router.on_call("n2", msgspec.msgpack.encode(call))
    [(to, channel, payload)] = world.links.sent
    assert (to, channel) == ("n2", CHANNEL_REPLY)
    assert msgspec.msgpack.decode(payload, type=Reply).response.code == "no_leader"  # type: ignore[union-attr]


def test_refused_for_leadership_is_tried_elsewhere(world: RouterWorld) -> None:
    """A node that does not lead says so, and the request goes to the one that does."""
    world.follow("n2", 0)
    world.ask(put(world.key(0)))
    [(_, call)] = world.links.calls()
    world.follow("n3", 0)
    world.answer(call, NO_LEADER, "n2")
    world.loop.run(0.05)
    [(to, again)] = world.links.calls()
    assert to == "n3"
    world.answer(again, PutResult(1, 1), "n3")
    assert world.response == PutResult(1, 1)


def test_leader_lost_before_the_log_is_tried_elsewhere(world: RouterWorld) -> None:
    """A proposal that never reached the log moves to the new leader, even without a key."""
    world.lead(0)
    world.group(0).reject = GroupFailure("not_leader")
    world.ask(put(world.key(0)))
    world.follow("n2", 0)
    world.loop.run(0.05)
    assert [to for to, _ in world.links.calls()] == ["n2"]


def test_forwarded_calls_do_not_circle(world: RouterWorld) -> None:
    """A call that was forwarded too often is refused, definitely."""
    world.follow("n2", 0)
    world.ask(put(world.key(0)), hops=HOPS_MAX)
    assert world.failure.code == "no_leader"
    assert world.failure.definite
    assert not world.links.sent


def test_forwarded_call_without_leader_goes_back(world: RouterWorld) -> None:
    """A node that was asked by another and knows no leader says so at once."""
    world.follow(None, 0)
    world.ask(put(world.key(0)), hops=1)
    assert world.failure == Failure(
        "no_leader", "shard 0 has no reachable leader", definite=True, retry_after_ms=200
    )


def test_node_without_a_replica_asks_one_that_has(world: RouterWorld) -> None:
    """With more nodes than replicas, a shard that is not here is asked at one of its replicas."""
    world = RouterWorld(shards=5, nodes=5)
    shard = next(g.shard for g in world.map.groups if "n1" not in g.replicas)
    world.ask(put(world.key(shard)))
    [(to, call)] = world.links.calls()
    assert to in world.map.placement(shard).replicas
    leader = next(name for name in world.map.placement(shard).replicas if name != to)
    reply = Reply(call.id, PutResult(1, 1), Served(leader, shard), 1)
    world.router.on_reply(to, msgspec.msgpack.encode(reply))
    world.ask(put(world.key(shard)))
    assert world.links.calls()[0][0] == leader, "who served it last is asked first"


def test_call_of_a_peer_is_answered_to_it(world: RouterWorld) -> None:
    """A forwarded call is served and its answer goes back over the link."""
    world.lead(0)
    call = Call(9, 1000, put(world.key(0)), 1, 1)
    world.router.on_call("n2", msgspec.msgpack.encode(call))
    [(to, _, payload)] = world.links.sent
    reply = msgspec.msgpack.decode(payload, type=Reply)
    assert (to, reply.id) == ("n2", 9)
    assert isinstance(reply.response, PutResult)


def test_a_call_is_answered_over_its_own_link_or_not_at_all(world: RouterWorld) -> None:
    """A peer that came back on a new link is not told what was asked on the one before."""
    world.lead(0)
    world.group(0).hold = True
    world.router.on_call("n2", msgspec.msgpack.encode(Call(9, 30_000, put(world.key(0)), hops=1)))
    world.router.on_call("n3", msgspec.msgpack.encode(Call(9, 30_000, put(world.key(0)), hops=1)))
    world.router.on_disconnected("n2")
    world.router.on_call("n2", msgspec.msgpack.encode(Call(9, 30_000, put(world.key(0)), hops=1)))
    for release in world.group(0).held:
        release()
    assert [to for to, _, _ in world.links.sent] == ["n3", "n2"]
    [_, payload] = [payload for _, _, payload in world.links.sent]
    answer = msgspec.msgpack.decode(payload, type=Reply).response
    assert isinstance(answer, PutResult)
    assert answer.version == 3, "the answer is that of the call of this very link"


def test_lives_do_not_share_numbers() -> None:
    """A node that starts anew numbers its calls where no earlier life of it did."""
    numbers: set[int] = set()
    for _ in range(4):
        world = RouterWorld()
        world.follow("n2", 0)
        for _ in range(8):
            world.ask(put(world.key(0)))
        numbers |= {call.id for _, call in world.links.calls()}
    assert len(numbers) == 4 * 8


def test_an_answer_to_an_earlier_life_answers_nothing() -> None:
    """Whatever the leader says to a call of the node's last life, this life's call goes on."""
    before, now = RouterWorld(), RouterWorld()
    for world in (before, now):
        world.follow("n2", 0)
        world.ask(put(world.key(0)))
    [(_, old)], [(_, new)] = before.links.calls(), now.links.calls()
    now.answer(old, PutResult(7, 1), "n2", 0)
    now.answer(Call(1, 0, old.request), PutResult(7, 1), "n2", 0)
    assert not now.replies
    now.answer(new, Refused("precondition", 5), "n2", 0)
    assert now.response == Refused("precondition", 5)


def test_an_answer_to_a_call_of_a_lost_link_is_not_taken(world: RouterWorld) -> None:
    """A repeated read waits for the answer to its new call; the old call's comes too late."""
    world.follow("n2", 0)
    world.ask(GetRequest(world.key(0)))
    [(_, old)] = world.links.calls()
    world.router.on_disconnected("n2")
    world.loop.run(0.05)
    [(_, again)] = world.links.calls()
    world.answer(old, GetResult(None), "n2", 0)
    assert not world.replies
    world.answer(again, GetResult(None), "n2", 0)
    assert world.response == GetResult(None)


def test_a_call_that_may_have_waited_long_on_its_way_is_refused(world: RouterWorld) -> None:
    """Its time begins anew here: it may have been retried elsewhere, and forgotten, long since."""
    world.lead(0)
    call = msgspec.msgpack.encode(Call(9, 30_000, put(world.key(0), "once"), hops=1))
    world.links.lags["n2"] = 1.1 * CALL_LAG_S_MAX
    world.router.on_call("n2", call)
    world.links.lags["n2"] = 0.9 * CALL_LAG_S_MAX
    world.router.on_call("n2", call)
    refused, served = (
        msgspec.msgpack.decode(payload, type=Reply).response for _, _, payload in world.links.sent
    )
    assert isinstance(refused, Failure)
    assert (refused.code, refused.definite) == ("unavailable", True)
    assert isinstance(served, PutResult)
    assert served.version == 1, "the refused one was not applied"


def test_a_late_copy_of_a_write_finds_its_key_remembered() -> None:
    """After the longest call's time, and the lag of every hop, the key has not been forgotten."""
    assert RequestLimits().timeout_ms_max / 1000 + HOPS_MAX * CALL_LAG_S_MAX < LIFETIME_S


def test_a_request_whose_time_is_up_is_not_tried_again(world: RouterWorld) -> None:
    """A node that was frozen while a request waited for a leader does not serve it on waking."""
    world.ask(put(world.key(0)), remaining_ms=1000)
    world.loop.freeze()
    world.loop.run(300)
    world.lead(0)
    world.router.leader_changed()
    world.loop.thaw()
    world.loop.run(1)
    assert world.failure.definite
    world.ask(GetRequest(world.key(0)))
    assert world.replies[1].response == GetResult(None)


# --- what is said when things go wrong ---------------------------------------------------------


def test_time_out_before_anyone_had_it_is_definite(world: RouterWorld) -> None:
    """A write that found no leader in time was certainly not applied."""
    world.ask(put(world.key(0)), remaining_ms=300)
    world.loop.run(0.6)
    assert (world.failure.code, world.failure.definite) == ("no_leader", True)


@pytest.mark.parametrize("leader", ["n1", "n2"])
def test_time_out_after_a_leader_had_it_is_unknown(world: RouterWorld, leader: str) -> None:
    """A write that a leader has and does not answer may be applied or not."""
    if leader == "n1":
        world.lead(0)
        world.group(0).hold = True
    else:
        world.follow(leader, 0)
    world.ask(put(world.key(0)), remaining_ms=300)
    world.loop.run(0.6)
    assert (world.failure.code, world.failure.definite) == ("timeout", False)


def test_time_out_of_a_read_is_definite(world: RouterWorld) -> None:
    """A read changes nothing, whoever had it."""
    world.follow("n2", 0)
    world.ask(GetRequest(world.key(0)), remaining_ms=300)
    world.loop.run(0.6)
    assert (world.failure.code, world.failure.definite) == ("timeout", True)


def test_late_answers_are_dropped(world: RouterWorld) -> None:
    """A request is answered once, whatever comes later."""
    world.follow("n2", 0)
    world.ask(put(world.key(0)), remaining_ms=100)
    [(_, call)] = world.links.calls()
    world.loop.run(0.5)
    world.answer(call, PutResult(1, 1), "n2")
    assert world.failure.code == "timeout"


def test_lost_link_makes_a_write_unknown(world: RouterWorld) -> None:
    """A write without a key that was forwarded before the link broke must not be tried again."""
    world.follow("n2", 0)
    world.ask(put(world.key(0)))
    world.links.calls()
    world.router.on_disconnected("n2")
    assert (world.failure.code, world.failure.definite) == ("unknown", False)
    world.loop.run(2)
    assert not world.links.sent


# --- large calls and answers wait their turn ----------------------------------------------------


def large_put(key: bytes, size: int = 2**20) -> WriteRequest:
    """Make a put of a large value, without an idempotency key."""
    return WriteRequest(Command(Put(key, bytes(size))))


def test_a_large_call_leaves_when_its_link_has_room(world: RouterWorld) -> None:
    """With the time that is left then, and behind it an answer is as good as any."""
    world.follow("n2", 0)
    world.links.busy = True
    world.ask(large_put(world.key(0)), remaining_ms=1000)
    world.loop.run(0.4)
    assert not world.links.sent
    world.links.let_go()
    [(to, call)] = world.links.calls()
    assert (to, call.hops) == ("n2", 1)
    assert call.remaining_ms == 600
    world.answer(call, PutResult(7, 1), "n2", 0)
    assert world.response == PutResult(7, 1)


def test_a_write_that_has_not_left_is_refused_definitely(world: RouterWorld) -> None:
    """Too much waits for the link, or its time is up before its turn comes: nobody had it."""
    world.follow("n2", 0)
    world.links.busy = True
    fitting = LinkLimits().calls_waiting_bytes_max // 2**20
    for _ in range(fitting + 1):
        world.ask(large_put(world.key(0)), remaining_ms=300)
    assert world.failure.code == "busy"
    assert world.failure.definite
    assert world.failure.retry_after_ms is not None
    world.loop.run(0.6)
    assert len(world.replies) == fitting + 1
    for reply in world.replies:
        assert isinstance(reply.response, Failure)
        assert (reply.response.code, reply.response.definite) == ("busy", True)
    world.links.let_go()
    assert not world.links.sent, "what was answered is not sent any more"
    assert world.router.in_flight == 0


def test_a_write_that_waited_for_a_link_that_broke_goes_elsewhere(world: RouterWorld) -> None:
    """Nothing of it had left, so it is tried again without a word, also without a key."""
    world.follow("n2", 0)
    world.links.busy = True
    world.ask(large_put(world.key(0)))
    world.links.waiting.clear()  # with its link
    world.links.busy = False
    world.follow("n3", 0)
    world.router.on_disconnected("n2")
    world.loop.run(0.05)
    [(to, call)] = world.links.calls()
    assert to == "n3"
    world.answer(call, Failure("disk_full", "full", definite=True), "n3")
    assert (world.failure.code, world.failure.definite) == ("disk_full", True)


def test_small_calls_and_answers_wait_behind_large_ones_only_if_they_must(
    world: RouterWorld,
) -> None:
    """A link that takes no more small messages at once takes them in turn; none is lost."""
    world.follow("n2", 0)
    world.lead(1)
    world.links.busy = True
    world.ask(put(world.key(0)))
    world.router.on_call("n2", msgspec.msgpack.encode(Call(9, 1000, put(world.key(1)), hops=1)))
    world.links.let_go()
    [(_, to_call, _), (_, to_reply, _)] = world.links.sent
    assert (to_call, to_reply) == (CHANNEL_CALL, CHANNEL_REPLY)


def answers_to_n2(world: RouterWorld) -> list[Response]:
    """What the peer n2 was answered."""
    return [
        msgspec.msgpack.decode(payload, type=Reply).response
        for to, channel, payload in world.links.sent
        if (to, channel) == ("n2", CHANNEL_REPLY)
    ]


def test_large_answers_wait_and_beyond_a_bound_reads_are_refused(world: RouterWorld) -> None:
    """Definitely: they can be asked again. What is said of a write is said in any case."""
    world.lead(0)
    key = world.key(0)
    world.ask(large_put(key, 16 * 2**20))
    fitting = LinkLimits().answers_waiting_bytes_max // (16 * 2**20)
    batch = BatchRequest((GetRequest(key), Command(Put(world.key(0, 1), b"v"))), shard=0)
    requests: list[Request] = [*[GetRequest(key)] * (fitting + 1), batch]
    for number, request in enumerate(requests):
        world.links.busy = True
        world.router.on_call("n2", msgspec.msgpack.encode(Call(number, 1000, request, hops=1)))
    world.links.let_go()
    answers = answers_to_n2(world)
    assert len(answers) == fitting + 2
    read = [answer for answer in answers if isinstance(answer, GetResult)]
    assert len(read) == fitting
    [refused] = [answer for answer in answers if isinstance(answer, Failure)]
    assert (refused.code, refused.definite) == ("busy", True)
    [mixed] = [answer for answer in answers if isinstance(answer, BatchResult)]
    assert [type(result) for result in mixed.results] == [Failure, PutResult]


def test_beyond_the_bound_what_transactions_have_read_is_refused_or_waits(
    world: RouterWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that only reads is refused for certain; no large answer goes ahead of Raft's messages."""
    world.lead(0)
    large, key = world.key(0), world.key(0, 1)
    world.ask(large_put(large, 16 * 2**20))
    world.ask(large_put(key))
    fitting = LinkLimits().answers_waiting_bytes_max // (16 * 2**20)
    reading = WriteRequest(Command(Txn((), (Get(key),), ())))
    writing = WriteRequest(Command(Txn((), (Get(key), Delete(key)), ())))
    ahead: list[Response] = []

    def send_small(_peer: str, _channel: int, payload: bytes) -> bool:
        ahead.append(msgspec.msgpack.decode(payload, type=Reply).response)
        return True

    monkeypatch.setattr(world.links, "send_small", send_small)
    world.links.busy = True
    requests: list[Request] = [*[GetRequest(large)] * fitting, reading, writing]
    for number, request in enumerate(requests):
        world.router.on_call("n2", msgspec.msgpack.encode(Call(number, 1000, request, hops=1)))
    [refused] = ahead
    assert isinstance(refused, Failure)
    assert (refused.code, refused.definite) == ("busy", True)
    world.links.let_go(1)
    again = Call(len(requests), 1000, GetRequest(large), hops=1)
    world.router.on_call("n2", msgspec.msgpack.encode(again))
    assert ahead[1:] == [refused], "what waits beyond the bound counts as what it takes"
    world.links.let_go()
    [written] = [answer for answer in answers_to_n2(world) if isinstance(answer, TxnResult)]
    assert [type(result) for result in written.results] == [GetResult, DeleteResult]


def test_lost_link_repeats_what_may_be_repeated(world: RouterWorld) -> None:
    """A read, and a write under an idempotency key, are tried again."""
    world.follow("n2", 0)
    world.ask(put(world.key(0), "once"))
    world.ask(GetRequest(world.key(0)))
    world.links.calls()
    world.follow("n3", 0)
    world.router.on_disconnected("n2")
    world.loop.run(0.05)
    assert [to for to, _ in world.links.calls()] == ["n3", "n3"]


def test_nothing_is_definite_after_an_exposed_try(world: RouterWorld) -> None:
    """After a try that may have been applied, a later definite refusal proves nothing."""
    world.follow("n2", 0)
    world.ask(put(world.key(0), "once"))
    world.links.calls()
    world.follow("n3", 0)
    world.router.on_disconnected("n2")
    world.loop.run(0.05)
    [(_, again)] = world.links.calls()
    world.answer(again, Failure("disk_full", "full", definite=True), "n3")
    assert (world.failure.code, world.failure.definite) == ("unknown", False)


@pytest.mark.parametrize(
    "refused", [Refused("table_full"), Refused("share_full"), Refused("forgotten", 7)]
)
def test_a_shard_speaks_of_this_try_only(world: RouterWorld, refused: Refused) -> None:
    """A full table or an unknown session refuses the last try; the one before may be applied."""
    world.follow("n2", 0)
    world.ask(put(world.key(0), "once"))
    world.links.calls()
    world.follow("n3", 0)
    world.router.on_disconnected("n2")
    world.loop.run(0.05)
    [(_, again)] = world.links.calls()
    world.answer(again, refused, "n3", 0)
    assert (world.failure.code, world.failure.definite) == ("unknown", False)


def test_remembered_outcome_after_an_exposed_try_stands(world: RouterWorld) -> None:
    """The shard's own word under the same key is the truth, a refused condition included."""
    world.follow("n2", 0)
    world.ask(put(world.key(0), "once"))
    world.links.calls()
    world.follow("n3", 0)
    world.router.on_disconnected("n2")
    world.loop.run(0.05)
    [(_, again)] = world.links.calls()
    world.answer(again, Refused("precondition", 5), "n3", 0)
    assert world.response == Refused("precondition", 5)


@pytest.mark.parametrize(
    ("reason", "code", "definite"),
    [
        ("busy", "busy", True),
        ("disk_full", "disk_full", True),
        ("too_large", "too_large", True),
        ("unknown", "unknown", False),
    ],
)
def test_rejections_are_told(
    world: RouterWorld,
    reason: str,
    code: str,
    definite: bool,  # noqa: FBT001 -- a parameter of the table
) -> None:
    """What a group rejects is told with its definiteness; busy says when to come back."""
    world.lead(0)
    world.group(0).reject = GroupFailure(reason)  # type: ignore[arg-type]
    world.ask(put(world.key(0)))
    assert (world.failure.code, world.failure.definite) == (code, definite)
    assert (world.failure.retry_after_ms is not None) == (code == "busy")


def test_closing_answers_everyone(world: RouterWorld) -> None:
    """A node that stops leaves nobody waiting: definite if nobody had it, else unknown."""
    world.follow("n2", 0)
    world.ask(put(world.key(0)))
    world.ask(put(world.key(1)))
    world.router.close()
    codes = {
        r.served.shard: r.response.code for r in world.replies if isinstance(r.response, Failure)
    }
    assert codes == {0: "timeout", 1: "no_leader"}


# --- reads -------------------------------------------------------------------------------------


def test_stale_read_is_served_by_any_replica(world: RouterWorld) -> None:
    """A stale read asks nobody and says how old it may be."""
    world.follow("n2", 0)
    world.ask(GetRequest(world.key(0), "stale"))
    assert world.response == GetResult(None)
    assert world.replies[0].served.age_ms == 42
    assert not world.links.sent


def test_stale_read_that_is_too_old_fails(world: RouterWorld) -> None:
    """A bound on the age that cannot be proven is a failure, not an old answer."""
    world.follow(None, 0)
    world.group(0).reject = GroupFailure("not_leader", "no leader can confirm")
    world.ask(GetRequest(world.key(0), "stale", 100))
    assert (world.failure.code, world.failure.definite) == ("too_stale", True)


def test_leader_that_is_not_confirmed_does_not_answer(world: RouterWorld) -> None:
    """A linearizable read waits for the confirm round and is not served without it."""
    world.lead(0)
    world.group(0).hold = True
    world.ask(GetRequest(world.key(0)), remaining_ms=200)
    world.loop.run(0.4)
    assert world.failure.code == "timeout"
    world.group(0).held[0]()  # confirmed too late: nothing more is said
    assert len(world.replies) == 1


# --- several shards ----------------------------------------------------------------------------


def test_transaction_must_stay_in_a_shard(world: RouterWorld) -> None:
    """Keys of two shards in one transaction are refused with what to do."""
    a, b = world.key(0), world.key(1)
    world.ask(WriteRequest(Command(Txn((Compare(a, "version", "=", 0),), (Put(b, b"v"),), ()))))
    assert (world.failure.code, world.failure.definite) == ("cross_shard", True)
    assert "{tag}" in world.failure.detail


@pytest.mark.parametrize("branch", ["then", "else"])
def test_a_range_of_a_transaction_must_share_a_tag(world: RouterWorld, branch: str) -> None:
    """A range over keys of several shards is refused: one shard's part is not what was asked."""
    world.lead(0)
    scattered = (Range(world.key(0), None, 10),)
    then, otherwise = (scattered, ()) if branch == "then" else ((), scattered)
    world.ask(WriteRequest(Command(Txn((), then, otherwise))))
    assert (world.failure.code, world.failure.definite) == ("cross_shard", True)
    assert "{tag}" in world.failure.detail
    assert "scan" in world.failure.detail


def test_a_range_within_a_tag_goes_to_the_tags_shard(world: RouterWorld) -> None:
    """All of its keys are there."""
    world.follow("n2", 0)
    tag = b"{" + world.key(0) + b"}"
    world.ask(WriteRequest(Command(Txn((), (Range(tag, tag[:-1] + b"~", 10),), ()))))
    [(peer, _)] = world.links.calls()
    assert peer == "n2"


def test_empty_transaction_is_invalid(world: RouterWorld) -> None:
    """A transaction without any key has no shard to go to."""
    world.ask(WriteRequest(Command(Txn((), (), ()))))
    assert world.failure.code == "invalid"


def test_unknown_shard_is_not_found(world: RouterWorld) -> None:
    """A transfer of a shard that does not exist says so."""
    world.ask(TransferRequest(99))
    assert world.failure.code == "not_found"


def test_batch_keeps_its_order_over_shards(world: RouterWorld) -> None:
    """Results stand where their operations stood, served here and elsewhere."""
    world.lead(0)
    world.follow("n2", 1)
    here, there = world.key(0), world.key(1)
    operations = (
        Command(Put(there, b"1")),
        Command(Put(here, b"2")),
        GetRequest(there),
        Command(Delete(here)),
    )
    world.ask(BatchRequest(operations))
    [(_, call)] = world.links.calls()
    assert isinstance(call.request, BatchRequest)
    assert (call.request.operations, call.request.shard) == ((operations[0], operations[2]), 1)
    world.answer(call, BatchResult((PutResult(5, 1), GetResult(None))), "n2", 1)
    assert isinstance(world.response, BatchResult)
    kinds = [type(result).__name__ for result in world.response.results]
    assert kinds == ["PutResult", "PutResult", "GetResult", "DeleteResult"]
    assert world.response.results[0] == PutResult(5, 1)


def test_batch_that_reads_too_much_fails_what_does_not_fit(world: RouterWorld) -> None:
    """Gets beyond the bound fail by themselves, definitely; the others are answered."""
    world.lead(0, 1)
    world.ask(WriteRequest(Command(Put(world.key(0), bytes(1000)))))
    gets = (GetRequest(world.key(0)),) * 3
    world.ask(BatchRequest(gets, bytes_max=2500))
    response = world.replies[1].response
    assert isinstance(response, BatchResult)
    kinds = [result.code if isinstance(result, Failure) else "read" for result in response.results]
    assert kinds == ["read", "read", "too_large"]


def test_batch_fails_only_where_it_failed(world: RouterWorld) -> None:
    """A shard without a leader fails its own operations, not the others'."""
    world.lead(0)
    world.follow(None, 1)
    world.ask(BatchRequest((Command(Put(world.key(0), b"")), Command(Put(world.key(1), b"")))), 300)
    world.loop.run(0.6)
    assert isinstance(world.response, BatchResult)
    good, bad = world.response.results
    assert isinstance(good, PutResult)
    assert isinstance(bad, Failure)
    assert bad.definite


def test_batch_with_a_lost_link_is_unknown_per_operation(world: RouterWorld) -> None:
    """Operations that were forwarded before the link broke are unknown, each of them."""
    world.follow("n2", 0)
    world.ask(BatchRequest((Command(Put(world.key(0), b"")),)))
    world.router.on_disconnected("n2")
    assert isinstance(world.response, BatchResult)
    [result] = world.response.results
    assert isinstance(result, Failure)
    assert not result.definite


def test_names_without_room_are_counted_each(world: RouterWorld) -> None:
    """An alert counts operations, as one batch has thousands of names; both are there at 0."""
    assert (world.router.refused["share_full"], world.router.refused["table_full"]) == (0, 0)
    world.follow("n2", 0)
    world.ask(put(world.key(0), "one"))
    [(_, call)] = world.links.calls()
    world.answer(call, Refused("share_full"), "n2", 0)
    world.ask(BatchRequest((put(world.key(0), "two").command, GetRequest(world.key(0))) * 2))
    [(_, call)] = world.links.calls()
    results = (Refused("share_full"), GetResult(None), Refused("table_full"), GetResult(None))
    world.answer(call, BatchResult(results), "n2", 0)
    world.ask(put(world.key(0)))
    [(_, call)] = world.links.calls()
    world.answer(call, Refused("precondition", 5), "n2", 0)
    assert world.router.refused == {"share_full": 2, "table_full": 1}


def test_empty_batch_is_answered(world: RouterWorld) -> None:
    """A batch of nothing has no results."""
    world.ask(BatchRequest(()))
    assert world.response == BatchResult(())


def test_scan_fails_if_a_shard_fails(world: RouterWorld) -> None:
    """A page with a hole in it would be a lie."""
    world.lead(0)
    world.ask(ScanRequest(b"", None, 10), remaining_ms=200)
    world.loop.run(0.5)
    assert isinstance(world.response, Failure)


# --- slow requests -----------------------------------------------------------------------------


def test_slow_request_is_remembered_and_logged(
    world: RouterWorld, caplog: pytest.LogCaptureFixture
) -> None:
    """With its kind, name and time; its key and value are nobody's business."""
    world.lead(0, 1)
    world.group(1).hold = True
    call = Call(1, 5000, put(world.key(1)), world.map.epoch, 0, "mine")
    world.router.handle(call, world.replies.append)
    world.loop.run(0.7)
    world.group(1).held.pop()()
    slow = world.replicas.by_shard[1].slow
    assert slow is not None
    assert (slow.kind, slow.request_id, slow.outcome) == ("write", "mine", "ok")
    assert slow.total_ms == pytest.approx(700)
    assert "slow write of shard 1: 700.0 ms" in caplog.text
    assert world.key(1).decode() not in str(slow)


def test_quick_requests_are_not(world: RouterWorld) -> None:
    """Nothing is noted of what took as long as it should."""
    world.lead(0, 1)
    world.ask(put(world.key(1)))
    assert all(replica.slow is None for replica in world.replicas)


def test_time_out_is_slow(world: RouterWorld, caplog: pytest.LogCaptureFixture) -> None:
    """A request that nobody served in time is one of the slowest."""
    world.ask(put(world.key(0)), remaining_ms=600)
    world.loop.run(1)
    assert "slow write of shard 0" in caplog.text
    slow = world.replicas.by_shard[0].slow
    assert slow is not None
    assert slow.outcome == "no_leader"


def test_name_of_a_request_goes_along(world: RouterWorld) -> None:
    """The node that serves a forwarded request calls it the same."""
    world.follow("n2", 0, 1)
    call = Call(1, 1000, put(world.key(1)), world.map.epoch, 0, "mine")
    world.router.handle(call, world.replies.append)
    ((_, forwarded),) = world.links.calls()
    assert forwarded.request_id == "mine"
