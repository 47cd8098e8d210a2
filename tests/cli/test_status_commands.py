"""``raftkv status`` and ``top``: the sentence first, an exit code for scripts, and live views."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from click.testing import CliRunner, Result

from raftkv.cli.main import cli
from raftkv.status.facts import ClusterFacts, read
from raftkv.status.health import health_of
from tests.support.fake_server import Behaviour, answer, nobody, serving

WIDE = {"COLUMNS": "140"}
EVIL = "[red]n9[/red]"
EVIL_CODES = "n1\x1b]0;x\x07\nraftkv: forged\x9b\u202e"


def facts(*, silent: tuple[str, ...] = (), leader: str | None = "n1") -> dict[str, Any]:
    """Two shards on three nodes."""
    names = ("n1", "n2", "n3")
    members = {
        name: {"role": "leader" if name == leader else "follower", "applied_index": 9}
        for name in names
        if name not in silent
    }
    row = {
        "leader": leader,
        "replicas": list(names),
        "members": members,
        "term": 3,
        "commit_index": 9,
        "load": {"reads_per_s": 12.0, "writes_per_s": 3456.0},
    }
    return {
        "node": "n1",
        "map_epoch": 1,
        "nodes": [
            {"name": n, "reachable": n not in silent, "led": [0], "rss_bytes": 2**20} for n in names
        ],
        "shards": [{"shard": 0, **row}, {"shard": 1, **row}],
        "events": [{"kind": "link_down", "node": "n1", "at_us": 1, "detail": EVIL}],
    }


def told(status: dict[str, Any]) -> Behaviour:
    """A node that says this."""
    return answer(200, json.dumps(status).encode())


Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    """Run a command against a node that answers as told."""

    def invoke(status: dict[str, Any], *arguments: str) -> Result:
        with serving(told(status)) as server:
            return CliRunner().invoke(cli, [*arguments, "--endpoint", server.url], env=WIDE)

    return invoke


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (facts(), 0),
        (facts(silent=("n3",)), 1),
        (facts(silent=("n2", "n3")), 2),
        (facts(leader=None), 2),
    ],
    ids=["healthy", "degraded", "no quorum", "no leader"],
)
def test_status_says_the_sentence_first_and_ends_with_the_verdict(
    run: Run, status: dict[str, Any], code: int
) -> None:
    """The same sentence as on the page, and 0, 1 or 2."""
    shown = run(status, "status")
    assert health_of(read(status, ClusterFacts)).sentence in shown.stdout.splitlines()[0]
    assert shown.exit_code == code


def test_status_shows_shards_nodes_and_events(run: Run) -> None:
    """Signs besides colours, and names as they are."""
    shown = run(facts(silent=("n3",)), "status").stdout
    for text in ("★ leader", "✓ follows", "✕ silent", "could not be asked: n3", "link down", EVIL):
        assert text in shown
    headings = ["when", "(UTC)", "node", "what", "where", "detail"]
    assert headings in [line.split() for line in shown.splitlines()]


def test_status_as_json(run: Run) -> None:
    """One document, with the verdict in it, and the same exit code."""
    shown = run(facts(silent=("n3",)), "status", "--json")
    assert (json.loads(shown.stdout)["health"]["state"], shown.exit_code) == ("degraded", 1)


def test_status_without_any_node() -> None:
    """If nobody answers that is the news, for people and for scripts."""
    for arguments in (["status"], ["status", "--json"]):
        shown = CliRunner().invoke(cli, [*arguments, "--endpoint", nobody(), "--timeout", "0.2"])
        assert shown.exit_code == 2
    assert json.loads(shown.stdout)["health"]["state"] == "unavailable"
    assert json.loads(shown.stdout)["error"]


def five_nodes() -> dict[str, Any]:
    """Five nodes that lead many shards, one of which is behind, and a long event."""
    names = tuple(f"node-{number}" for number in range(1, 6))
    members = {name: {"role": "follower", "applied_index": 9_000_000} for name in names}
    members["node-1"]["role"] = "leader"
    members["node-2"]["applied_index"] = 1
    row = {
        "leader": "node-1",
        "replicas": list(names),
        "members": members,
        "term": 123_456,
        "leader_since_us": 1,
        "commit_index": 9_000_000,
        "keys": 123_456_789,
    }
    node = {"reachable": True, "led": list(range(64)), "rss_bytes": 2**34, "round_trip_ms": 123.4}
    more = {
        "disk": {"free_bytes": 2**39, "size_bytes": 2**40},
        "uptime_s": 90_000,
        "fdatasync_ms": {"p99": 12.3},
    }
    return {
        "node": "node-1",
        "map_epoch": 1,
        "nodes": [{"name": name, **node, **more} for name in names],
        "shards": [{"shard": number, **row} for number in range(3)],
        "events": [
            {"kind": "node_refused", "node": "node-1", "at_us": 1, "detail": "because " * 20}
        ],
    }


def test_status_of_five_nodes_fits_80_columns() -> None:
    """Signs without their words, fewer figures; no cell is cut or broken over lines."""
    with serving(told(five_nodes())) as server:
        command = ["status", "--endpoint", server.url]
        shown = CliRunner().invoke(cli, command, env={"COLUMNS": "80"}).stdout
    lines = shown.splitlines()
    assert max(map(len, lines)) <= 80
    rows_of = {line.split()[0]: line.split()[1:] for line in lines if line.strip()}
    assert rows_of["shard"][:5] == [f"node-{number}" for number in range(1, 6)]
    for number in "012":
        assert rows_of[number][:6] == ["★", "▲", "−8,999,999", "✓", "✓", "✓"]  # noqa: RUF001
        assert rows_of[number][6:9] == ["2", "may", "fail"]
    assert rows_of["node-3"][:6] == ["✓", "answers", "64", "shards", "123", "ms"]
    assert "…" not in shown


# --- several endpoints ----------------------------------------------------------------------------


def view(node: str, *, silent: tuple[str, ...] = (), **changes: Any) -> dict[str, Any]:
    """What ``node`` says of the cluster; a node that hears nobody knows no leader."""
    leader = None if len(silent) == 2 else "n2"
    return {**facts(silent=silent, leader=leader), "node": node, "cluster": "c", **changes}


def ask(*views: dict[str, Any] | None, arguments: tuple[str, ...] = ()) -> Result:
    """Ask one endpoint for each view; None is one where nobody listens."""
    with contextlib.ExitStack() as stack:
        urls = [nobody() if v is None else stack.enter_context(serving(told(v))).url for v in views]
        command = ["status", *arguments, "--endpoint", ",".join(urls), "--timeout", "5"]
        return CliRunner().invoke(cli, command, env=WIDE)


CUT_OFF = view("n3", silent=("n1", "n2"))


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_node_that_is_cut_off_does_not_speak_for_the_cluster(place: int) -> None:
    """Whichever endpoint is its: the view of those that hear each other is shown, it is named."""
    views = [view("n1", silent=("n3",)), view("n2", silent=("n3",))]
    views.insert(place, CUT_OFF)
    shown = ask(*views)
    assert shown.exit_code == 1
    assert "All 2 shards have a leader and a quorum, but n3 does not answer" in shown.stdout
    assert "n3 answers at http://127.0.0.1:" in shown.stdout
    assert "n3 is cut off, and hears no other node." in shown.stdout


def test_an_endpoint_that_does_not_answer_is_named() -> None:
    """The others tell how the cluster is, and it ends with their verdict."""
    shown = ask(None, view("n2"))
    assert shown.exit_code == 0
    assert "does not tell: " in shown.stdout
    assert "Connection refused" in shown.stdout


def test_status_of_several_endpoints_where_nobody_listens() -> None:
    """Each is named, and there is nothing to wait for."""
    started = time.monotonic()
    shown = ask(None, None)
    assert shown.exit_code == 2
    assert shown.stdout.count("Connection refused") == 2
    assert time.monotonic() - started < 2


def test_of_two_equal_views_the_newer_terms_count() -> None:
    """The side of a partition that elects goes on; the other side's leaders are of old terms."""
    old, new = view("n1", silent=("n2",)), view("n2", silent=("n1",))
    new["shards"] = [{**row, "term": 9} for row in new["shards"]]
    for views in ([old, new], [new, old]):
        shown = ask(*views)
        assert "seen from n2" in shown.stdout
        assert "n1 answers at http://" in shown.stdout
        assert "the two are parted" in shown.stdout


def test_an_endpoint_of_another_cluster_is_named() -> None:
    """Its nodes are not counted as anybody's."""
    shown = ask(view("n1"), view("x", cluster="other", silent=("n3",)))
    assert shown.exit_code == 0
    assert "is of another cluster: other." in shown.stdout


def test_one_endpoint_that_hears_nobody_may_itself_be_cut_off() -> None:
    """One node cannot tell which; the line says so, and what to do."""
    shown = ask(CUT_OFF)
    assert shown.exit_code == 2
    assert "n3 hears no other node: either all of them are down or it is cut off;" in shown.stdout


def test_json_says_who_was_asked() -> None:
    """For scripts: each endpoint with its node or its error, and the sentences about them."""
    document = json.loads(ask(CUT_OFF, view("n1", silent=("n3",)), arguments=("--json",)).stdout)
    assert document["node"] == "n1"
    assert document["health"]["state"] == "degraded"
    assert [asked["node"] for asked in document["asked"]] == ["n3", "n1"]
    assert "n3 is cut off" in document["remarks"][0]


def test_local_is_the_first_node_that_answers() -> None:
    """It is about one node, so which one is not a matter of who knows most."""
    shown = ask(None, CUT_OFF, view("n1"), arguments=("--local",))
    assert "seen from n3" in shown.stdout


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ctrl-C after the first look."""

    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(time, "sleep", interrupt)
        yield


@pytest.mark.usefixtures("interrupted")
@pytest.mark.parametrize(
    ("arguments", "text"),
    [(("status", "--watch"), "★ leader"), (("top",), "3,456"), (("top",), "1.0 MiB")],
)
def test_live_views_end_with_ctrl_c(run: Run, arguments: tuple[str, ...], text: str) -> None:
    """They show what status shows, or load, and end cleanly."""
    shown = run(facts(), *arguments)
    assert text in shown.stdout
    assert "All 2 shards have a leader and a quorum; one more node may fail." in shown.stdout
    assert shown.exit_code == 0


@pytest.mark.usefixtures("interrupted")
@pytest.mark.parametrize(
    "arguments", [("status",), ("status", "--json"), ("status", "--watch"), ("top",)]
)
def test_what_nodes_say_does_not_drive_the_terminal(run: Run, arguments: tuple[str, ...]) -> None:
    """Names and details are theirs: what they hold is shown, not followed."""
    said = facts(silent=("n3",))
    said["node"] = "\x1b[2J\nn\x9b"
    said["nodes"][0]["name"] = said["events"][0]["detail"] = said["events"][0]["node"] = EVIL_CODES
    shown = run(said, *arguments).stdout
    assert all(line.isprintable() for line in shown.splitlines())


def test_what_a_server_refuses_with_does_not_drive_the_terminal() -> None:
    """Its words go to standard error, in one line."""
    problem = json.dumps({"title": "no", "detail": EVIL_CODES, "code": "x", "definite": True})
    kind = "application/problem+json"
    with serving(answer(400, problem.encode(), Content_Type=kind)) as server:
        shown = CliRunner().invoke(cli, ["get", "k", "--endpoint", server.url])
    assert shown.exit_code not in (0, 1)
    assert "raftkv: forged" in shown.stderr
    assert shown.stderr[:-1].isprintable()


def test_status_says_what_is_pinned_and_for_how_long_nobody_has_led(run: Run) -> None:
    """An operator's own doing is not to look like a fault, nor an outage like a moment."""
    status = facts(leader=None)
    status["shards"][0] |= {"no_leader_since_us": time.time_ns() // 1000 - 42_400_000}
    status["shards"][1] |= {"pinned": {"node": "n3", "until_us": None}}
    said = run(status, "status").stdout
    assert "no leader for 42 s" in said
    assert "The leadership of shard 1 is pinned to n3 by an operator until that node stops" in said
