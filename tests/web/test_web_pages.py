"""Pages for operators, on an engine that says what the test wants: what they show, and to whom."""

import base64
import re
from collections.abc import Callable
from hashlib import sha256

import msgspec
import pytest

from raftkv.rpc.messages import ExplainRequest, Facts, Failure, StatusRequest, TransferRequest
from raftkv.rpc.web_config import TokenHash, WebConfig
from raftkv.status import views
from raftkv.status.facts import (
    ClusterFacts,
    Event,
    FollowerFacts,
    HotKey,
    Leadership,
    LoadRates,
    Member,
    NodeSummary,
    PinFacts,
    RingShape,
    ShardFacts,
    SlowRequest,
)
from tests.support.fake_engine import LOCAL, FakeEngine, explained
from tests.web.carriers import Answer, Carrier
from tests.web.conftest import LIMITS

FOLLOWER = FollowerFacts()
PAGES = (b"/", b"/shards/0", b"/nodes/n1", b"/ring", b"/explain/k", b"/explain")
EVIL = "<script>alert(1)</script>\"'&"
FORM = {
    "Content-Type": "application/x-www-form-urlencoded",
    "Sec-Fetch-Site": "same-origin",
    "Host": "127.0.0.1:8000",
    "Origin": "http://127.0.0.1:8000",
}


def text_of(answer: Answer) -> str:
    """Return what a page says, without its markup."""
    return " ".join(re.sub(r"<[^>]*>", " ", answer.body.decode()).split())


# --- what they show ------------------------------------------------------------------------------


def test_overview(api: Carrier) -> None:
    """First what is wrong, then every shard on every node."""
    said = text_of(api("GET", b"/"))
    assert "not answering: n3" in said
    assert said.index("Shard 1 has no leader") < said.index("Shards and their replicas")
    assert "★ leader" in said
    assert "✕ silent" in said
    assert "no leader" in said
    assert "nothing" not in said, "what a silent node leads is not known"


def test_the_key_has_every_sign_of_the_grid(api: Carrier) -> None:
    """What a replica can look like is said below the shards."""
    row = ShardFacts(shard=0, replicas=("n1",))
    led = msgspec.structs.replace(row, leader="n2")
    rows = [
        ShardFacts(shard=0),
        row,
        led,
        msgspec.structs.replace(row, leader="n1"),
        msgspec.structs.replace(row, members={"n1": Member(installing_snapshot=True)}),
        msgspec.structs.replace(led, followers={"n1": FollowerFacts(lag_entries=10**9)}),
    ]
    cells = [views.replica_cell(each, "n1", {"n1"}) for each in rows]
    cells.append(views.replica_cell(row, "n1", set()))
    assert len({cell.sign for cell in cells}) == 7
    (key,) = re.findall(r'<p class="key note">.*?</p>', api("GET", b"/").body.decode())
    assert {cell.sign for cell in cells} - set(key) == set()


def test_shard_node_and_key(api: Carrier, engine: FakeEngine) -> None:
    """Each has a page of its own; what there is not is a page, too."""
    assert "Led by n1" in text_of(api("GET", b"/shards/0"))
    assert "Nobody leads it" in text_of(api("GET", b"/shards/1"))
    assert "Does not answer n1" in text_of(api("GET", b"/nodes/n3"))
    assert "Lives in shard 0" in text_of(api("GET", b"/explain/%FF%00"))
    assert ExplainRequest(b"\xff\0") in engine.asked
    for missing in (b"/shards/7", b"/nodes/n9"):
        answer = api("GET", missing)
        assert answer.status == 404
        assert "There is no" in text_of(answer)


def test_form_leads_to_the_key(api: Carrier) -> None:
    """Whatever is typed, it is one key."""
    answer = api("GET", b"/explain?key=a%2Fb+%3F%23")
    assert (answer.status, answer.headers["location"]) == (303, "/explain/a%2Fb%20%3F%23")


def test_ring(api: Carrier, engine: FakeEngine) -> None:
    """Shares, arcs, hot keys as text, and what a new shard would take."""
    hot = (HotKey("00", EVIL, 0.5),)
    load = LoadRates(30.0, 10.0)
    told = ClusterFacts(
        node="n1",
        ring=RingShape("ring", (0, 1), 1),
        shards=(
            ShardFacts(shard=0, leader="n1", keys=3, load=load, hot_keys=hot),
            ShardFacts(shard=1, leader="n2", keys=1, load=load),
        ),
    )
    engine.answers.append(Facts.of(told))
    answer = api("GET", b"/ring")
    said = text_of(answer)
    assert "75.0 %" in said  # of the keys
    assert "50.0 %" in said  # of the load
    assert "Shard 2 would take" in said
    # Two shares, and their stretches, one of which is cut by the circle's top.
    assert answer.body.count(b"<path class=") == 2 + 3
    assert b"<script>alert" not in answer.body
    assert b"&lt;script&gt;alert" in answer.body


def test_ring_of_more_stretches_than_can_be_drawn(api: Carrier, engine: FakeEngine) -> None:
    """It shows each shard's share, and says that it does."""
    shards = tuple(range(9))
    ring = RingShape("ring", shards, 512)
    engine.answers.append(Facts.of(ClusterFacts(ring=ring, shards=(ShardFacts(shard=0),))))
    answer = api("GET", b"/ring")
    assert answer.body.count(b"<path class=") == len(shards)
    assert "too many stretches to draw" in text_of(answer)


def test_without_answers_of_the_others(api: Carrier, engine: FakeEngine) -> None:
    """A node whose cluster cannot be asked shows what it knows by itself, and says so."""
    engine.failing.add("cluster")
    engine.answers.extend([Failure("internal", "a bug"), Facts.of(LOCAL)])
    answer = api("GET", b"/")
    assert answer.status == 200
    assert "this is what n1 alone knows" in text_of(answer)


@pytest.mark.parametrize(
    "path",
    [*PAGES[:-1], b"/?part=main", b"/shards/7", b"/nodes/n9?part=main", b"/shards/0/transfer"],
)
def test_of_a_silent_engine(api: Carrier, engine: FakeEngine, path: bytes) -> None:
    """Every page says so, whatever it is about; its status tells a monitor. It waits once."""
    engine.answers.extend([Failure("timeout", "the engine did not answer")] * 2)
    answer = api("GET", path)
    assert answer.status == 503
    assert "The engine of n1 does not answer." in text_of(answer)
    together = {ExplainRequest(b"k")} if path == b"/explain/k" else set()
    assert {StatusRequest("cluster")} | together == set(engine.asked)


def test_without_any_facts(api: Carrier, engine: FakeEngine) -> None:
    """An engine that answers, and can tell nothing, is no better."""
    engine.failing |= {"cluster", "local"}
    assert api("GET", b"/").status == 503
    assert "The engine of n1 does not answer." in text_of(api("GET", b"/"))


@pytest.mark.parametrize("path", PAGES)
def test_everything_is_escaped(api: Carrier, engine: FakeEngine, path: bytes) -> None:
    """Names, details of events and whatever else an engine reports stay text."""
    names = (EVIL, "n1")
    row = ShardFacts(
        shard=0,
        leader=EVIL,
        replicas=(EVIL,),
        seen_by=EVIL,
        leaders=(Leadership(1, EVIL, 1),),
        slow=SlowRequest(at_us=1, kind=EVIL, request_id=EVIL, total_ms=1, stages_ms={EVIL: 1}),
        members={EVIL: Member(digest=EVIL)},
        hot_keys=(HotKey("00", EVIL, 0.5),),
        load=LoadRates(1.0, 1.0),
        kept_because=EVIL,
        pinned=PinFacts(EVIL),
    )
    evil = ClusterFacts(
        node=EVIL,
        cluster=EVIL,
        ring=RingShape("ring", (0,), 1),
        nodes=tuple(
            NodeSummary(name=name, reachable=True, version=EVIL, disagrees=EVIL) for name in names
        ),
        shards=(row,),
        events=tuple(Event(at_us=1, kind=EVIL, detail=EVIL, node=name, shard=0) for name in names),
    )
    key = msgspec.structs.replace(explained(b"k"), leader=EVIL, hash=EVIL, asked=EVIL, state=row)
    engine.told |= {StatusRequest("cluster"): Facts.of(evil), ExplainRequest(b"k"): Facts.of(key)}
    body = api("GET", path).body
    assert b"<script>alert" not in body
    assert b"\"'&" not in body
    assert path == b"/explain" or b"&lt;script&gt;" in body


@pytest.mark.parametrize("path", PAGES)
@pytest.mark.parametrize(
    "facts",
    [
        ClusterFacts(),
        ClusterFacts(nodes=(NodeSummary(name="n1"),), shards=(ShardFacts(shard=0),)),
        ClusterFacts(shards=(ShardFacts(shard=0, replicas=("n1",), followers={"n1": FOLLOWER}),)),
    ],
)
def test_pages_do_without_what_is_not_told(
    api: Carrier, engine: FakeEngine, facts: ClusterFacts, path: bytes
) -> None:
    """A node of another version leaves things out: a page never fails over it."""
    engine.told[StatusRequest("cluster")] = Facts.of(facts)
    assert api("GET", path).status in (200, 404)


def test_many_viewers_ask_once(api: Carrier, engine: FakeEngine) -> None:
    """Ten open pages cost one question."""
    for _ in range(10):
        api("GET", b"/?part=main")
        api("GET", b"/shards/0?part=main")
    assert engine.asked == [StatusRequest("cluster")]


def test_part_is_what_changes(api: Carrier) -> None:
    """The script gets the inside of ``main``, nothing around it."""
    part = api("GET", b"/?part=main").body
    assert b"<html" not in part
    assert b'id="health"' in part
    assert api("GET", b"/?part=head").code == "invalid"


# --- who may see and do what ---------------------------------------------------------------------


@pytest.mark.parametrize("path", [*PAGES, b"/shards/0/transfer"])
def test_security_headers(api: Carrier, path: bytes) -> None:
    """Nothing of another site runs or is asked, nothing is inline, nobody frames the page."""
    answer = api("GET", path)
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["referrer-policy"] == "same-origin"
    assert not re.search(rb"<script(?![^>]* src=)|<style| style=| on\w+=", answer.body)


@pytest.mark.parametrize("name", [b"raftkv.css", b"live.js", b"icon.svg"])
def test_assets_come_from_here(api: Carrier, name: bytes) -> None:
    """Nothing else is needed."""
    assert api("GET", b"/static/" + name).status == 200
    assert api("GET", b"/static/../config.py").status == 404


def _open_form(api: Carrier, headers: dict[str, str] | None = None) -> tuple[str, bytes]:
    """Open the question; return the cookie and the form's body."""
    answer = api("GET", b"/shards/1/transfer", headers or {})
    assert answer.status == 200, answer
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    token = re.search(rb'name="token" value="(\w+)"', answer.body)
    assert token is not None
    return cookie.partition(";")[0], b"target=n2&token=" + token.group(1)


def test_transfer(api: Carrier, engine: FakeEngine) -> None:
    """The form hands leadership over, and leads back to the shard."""
    cookie, body = _open_form(api)
    answer = api("POST", b"/shards/1/transfer", {**FORM, "Cookie": cookie}, body)
    assert (answer.status, answer.headers["location"]) == (303, "/shards/1")
    assert engine.asked[-1] == TransferRequest(1, "n2")
    engine.answers.append(Failure("refused", "n2 is <behind>", definite=True))
    refused = api("POST", b"/shards/1/transfer", {**FORM, "Cookie": cookie}, body)
    assert refused.status == 409
    assert b"It was refused: n2 is &lt;behind&gt;" in refused.body


@pytest.mark.parametrize(
    "spoil",
    [
        {"Cookie": ""},
        {"Cookie": "raftkv_form=" + 32 * "0"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
    ],
)
def test_forged_transfers(api: Carrier, engine: FakeEngine, spoil: dict[str, str]) -> None:
    """A form of another site, or for another visitor, changes nothing."""
    cookie, body = _open_form(api)
    answer = api("POST", b"/shards/1/transfer", {**FORM, "Cookie": cookie, **spoil}, body)
    assert answer.code == "forbidden"
    assert not any(isinstance(request, TransferRequest) for request in engine.asked)


def test_tokens_of_forms_are_for_one_purpose(api: Carrier) -> None:
    """The token of one shard's form does not move another shard; nor does none."""
    cookie, body = _open_form(api)
    headers = {**FORM, "Cookie": cookie}
    assert api("POST", b"/shards/0/transfer", headers, body).code == "forbidden"
    assert api("POST", b"/shards/1/transfer", headers, b"target=n2").code == "forbidden"
    assert api("POST", b"/shards/1/transfer", headers, b"token=\xff%FF").code == "forbidden"


def _basic(token: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(b"me:" + token.encode()).decode()}


def test_browsers_log_in_with_the_token_as_password(
    make_api: Callable[[WebConfig], Carrier],
) -> None:
    """``read`` sees everything, ``admin`` transfers, and a form belongs to who opened it."""
    tokens = tuple(
        TokenHash(sha256=sha256(role.encode()).hexdigest(), role=role)
        for role in ("read", "write", "admin")
    )
    api = make_api(WebConfig(node_name="n1", limits=LIMITS, tokens=tokens))
    for path in PAGES:
        assert "Basic" in api("GET", path).headers["www-authenticate"]
        assert api("GET", path, _basic("wrong")).status == 401
        assert api("GET", path, _basic("read")).status == 200
    assert api("GET", b"/shards/1/transfer", _basic("write")).code == "forbidden"
    cookie, body = _open_form(api, _basic("admin"))
    form = {**FORM, "Cookie": cookie}
    path = b"/shards/1/transfer"
    assert api("POST", path, form, body).code == "unauthorized"
    assert api("POST", path, {**form, **_basic("write")}, body).code == "forbidden"
    assert api("POST", path, {**form, **_basic("admin")}, body).status == 303


def test_browsers_are_told_why_as_a_page(make_api: Callable[[WebConfig], Carrier]) -> None:
    """What to do about it is said to people; programs get the problem as everywhere else."""
    tokens = (TokenHash(sha256=sha256(b"read").hexdigest(), role="read"),)
    api = make_api(WebConfig(node_name="n1", limits=LIMITS, tokens=tokens))
    browser = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    stranger = api("GET", b"/", browser)
    assert stranger.status == 401
    assert "Basic" in stranger.headers["www-authenticate"]
    assert "as the password a token" in text_of(stranger)
    reader = api("GET", b"/shards/1/transfer", {**browser, **_basic("read")})
    assert reader.status == 403
    assert "This needs a token with role" in text_of(reader)
    assert "private window" in text_of(reader)
    confused = api("GET", b"/?part=head", {**browser, **_basic("read")})
    assert confused.status == 400
    assert "private window" not in text_of(confused)
    for answer in (stranger, reader, confused):
        assert answer.headers["content-type"].startswith("text/html")
        assert answer.headers["cache-control"] == "no-store"
    assert api("GET", b"/", {"Accept": "*/*"}).code == "unauthorized"
    seen = api("GET", b"/", _basic("read"))
    assert b"/metrics" not in seen.body, "a link that the login does not open"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", b"/nope", 404),
        ("GET", b"/shards/x", 404),
        ("GET", b"/v1/nope", 404),
        ("PUT", b"/ring", 405),
    ],
)
def test_browsers_are_told_of_an_unknown_route_by_a_page(
    api: Carrier, method: str, path: bytes, status: int
) -> None:
    """Who mistypes an address gets a page that leads back; programs get the problem."""
    browser = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    answer = api(method, path, browser)
    assert answer.status == status
    assert answer.headers["content-type"].startswith("text/html")
    assert "Back to the overview" in text_of(answer)
    assert "style-src 'self'" in answer.headers["content-security-policy"]
    for accept in ({}, {"Accept": "*/*"}, {"Accept": "application/json"}):
        assert api(method, path, accept).status == status
        assert api(method, path, accept).code in {"not_found", "method_not_allowed"}


def test_cookie_is_secure_under_tls(make_api: Callable[[WebConfig], Carrier]) -> None:
    """Where HTTP is HTTPS the cookie stays there."""
    api = make_api(WebConfig(node_name="n1", limits=LIMITS, tls_cert="n1.crt", tls_key="n1.key"))
    assert "Secure" in api("GET", b"/shards/1/transfer").headers["set-cookie"]
