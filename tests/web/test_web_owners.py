"""Whose share of the idempotency table new names come out of, over both carriers."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest

from raftkv.core.shard.machine import StateMachine
from raftkv.core.shard.outcomes import MemoryLimits
from raftkv.rpc.web_config import Limits, TokenHash, WebConfig
from raftkv.web.api.owners import owner_of
from tests.support.fake_engine import FakeEngine
from tests.web.carriers import Carrier
from tests.web.documented import unchecked

MakeApi = Callable[[WebConfig], Carrier]
TOKENS = tuple(
    TokenHash(hashlib.sha256(name.encode()).hexdigest(), "write", name) for name in ("one", "two")
)
JSON = {"Content-Type": "application/json"}
TXN = {"compare": [], "then": [{"op": "put", "key": "k", "value": "v"}], "else": []}


@pytest.fixture
def api(make_api: MakeApi) -> Carrier:
    """The API with two tokens that may write."""
    return make_api(WebConfig(node_name="n1", tokens=TOKENS))


def bearer(token: str) -> dict[str, str]:
    """The header that shows a token."""
    return {"Authorization": f"Bearer {token}"}


def put_named(api: Carrier, token: str, headers: dict[str, str]) -> int:
    """A put under a name; the status of its answer."""
    return api("PUT", b"/v1/kv/k", {**bearer(token), **headers}, b"v").status


def batch(api: Carrier, token: str, members: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results of a batch of puts, each with these members beside its key and value."""
    puts = [{"op": "put", "key": "k", "value": "v", **member} for member in members]
    body = json.dumps({"operations": puts}).encode()
    results: list[dict[str, Any]] = api(
        "POST", b"/v1/batch", {**bearer(token), **JSON}, body
    ).json()["results"]
    return results


def owners(engine: FakeEngine) -> set[int]:
    """Who has something in the table."""
    return {holding.owner for holding in engine.state.memory.holdings()}


def test_a_name_comes_with_its_tokens_and_addresss_owner(api: Carrier, engine: FakeEngine) -> None:
    """Whichever way it comes: in either header, of a put or a transaction, or within a batch."""
    session = {"id": "b", "sequence": 1, "low": 1, "born": 5}
    assert put_named(api, "one", {"Idempotency-Key": "a"}) == 201
    assert put_named(api, "one", {"Raftkv-Session": "s;1;1;5"}) == 200
    batch(api, "one", [{"idempotency_key": "b"}, {"session": session}])
    headers = {**bearer("one"), **JSON, "Idempotency-Key": "t"}
    assert api("POST", b"/v1/txn", headers, json.dumps(TXN).encode()).status == 200
    api("DELETE", b"/v1/kv/k", {**bearer("one"), "Idempotency-Key": "d"})
    assert owners(engine) == {owner_of("one", "127.0.0.1")}
    [holding] = engine.state.memory.holdings()
    assert (holding.keys, holding.sessions) == (4, 2)


def test_another_token_and_another_address_are_other_owners(
    api: Carrier, engine: FakeEngine
) -> None:
    """One client of a token does not stop the others, nor one token those of its machine."""
    put_named(api, "one", {"Idempotency-Key": "a"})
    put_named(api, "two", {"Idempotency-Key": "b"})
    unchecked(api).address = "192.0.2.7"
    put_named(api, "one", {"Idempotency-Key": "c"})
    assert owners(engine) == {
        owner_of("one", "127.0.0.1"),
        owner_of("two", "127.0.0.1"),
        owner_of("one", "192.0.2.7"),
    }
    assert len(owners(engine)) == 3


def test_without_tokens_owners_are_told_apart_by_address(
    make_api: MakeApi, engine: FakeEngine
) -> None:
    """Also there nobody may fill the table for all."""
    api = make_api(WebConfig(node_name="n1"))
    for number, address in enumerate(["192.0.2.7", "192.0.2.8", "192.0.2.7"]):
        unchecked(api).address = address
        api("PUT", b"/v1/kv/k", {"Idempotency-Key": f"{number}"}, b"v")
    assert len(owners(engine)) == 2


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8:1:2::3", "2001:db8:1:2:a:b:c:d", True),
        ("2001:db8:1:2::3", "2001:db8:1:3::3", False),
        ("::ffff:192.0.2.7", "192.0.2.7", True),
        ("192.0.2.7", "192.0.2.8", False),
        ("fe80::1%eth0", "fe80::1%eth1", True),
        ("unknown", "unknown", True),
    ],
)
def test_an_address_is_what_one_host_has(one: str, other: str, *, same: bool) -> None:
    """A host has a whole network of IPv6 addresses, and one IPv4 address however it is written."""
    assert (owner_of("t", one) == owner_of("t", other)) is same


def test_owners_are_numbers_that_never_change() -> None:
    """Logs and snapshots hold them: another version, or node, must come to the same."""
    assert owner_of("one", "127.0.0.1") == 8049308883002690177
    assert 0 < owner_of("", "") < 2**63


@pytest.mark.parametrize("kind", ["free-form keys", "sessions"])
def test_when_one_token_has_filled_its_share_another_one_is_served(
    make_api: MakeApi, engine: FakeEngine, kind: str
) -> None:
    """Fourteen batches of new names filled the table; now they fill the share of who sends them."""
    limits = MemoryLimits(free_keys_max=1_000, sessions_max=1_000)
    engine.state = StateMachine(1, lambda _key: True, limits)
    api = make_api(
        WebConfig(node_name="n1", limits=Limits(batch_operations_max=200), tokens=TOKENS)
    )

    def name(number: int) -> dict[str, Any]:
        if kind == "sessions":
            return {"session": {"id": f"{number}", "sequence": 1, "low": 1, "born": 5}}
        return {"idempotency_key": f"{number}"}

    for number in range(14):
        results = batch(api, "one", [name(200 * number + n) for n in range(200)])
    last = results[-1]
    assert (last["status"], last["code"], last["definite"]) == (429, "share_full", True)
    header = {"Raftkv-Session": "new;1;1;5"} if kind == "sessions" else {"Idempotency-Key": "new"}
    assert put_named(api, "two", header) == 200
    assert put_named(api, "one", header) == 200  # the same write again: it is remembered
    refused = api("PUT", b"/v1/kv/k", {**bearer("one"), "Idempotency-Key": "another"}, b"v")
    assert refused.status == (200 if kind == "sessions" else 429)
    if refused.status == 429:
        assert (refused.code, refused.definite) == ("share_full", True)
        assert int(refused.headers["retry-after"]) > 0
