"""Alert rules and dashboard: well formed, and about figures that a real node shows."""

import json
import re
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from prometheus_client.parser import text_string_to_metric_families

from raftkv import Client
from raftkv.cli.certs import make_certificates
from raftkv.client import RaftkvError
from raftkv.rpc.web_config import WebConfig
from raftkv.testing import LocalCluster
from raftkv.web.ops.machine_metrics import MachineMetrics, expiries
from tests.deploy.deployment import DEPLOY, TOP, documents, run_tool

RULES = [
    rule
    for group in documents(DEPLOY / "prometheus" / "alerts.yml")[0]["groups"]
    for rule in group["rules"]
]
TESTS = documents(DEPLOY / "prometheus" / "alerts_test.yml")[0]["tests"]
DASHBOARD = json.loads((DEPLOY / "grafana" / "raftkv.json").read_text())

# Known to Prometheus itself, and to nodes with TLS only.
ELSEWHERE = {"up", "ALERTS", "raftkv_certificate_expiry_timestamp_seconds"}

GRAFANA_VARIABLES = {"$__rate_interval": "1m", "$cluster": ".*"}


def dashboard_expressions() -> list[str]:
    """What the dashboard asks Prometheus, as Prometheus gets it."""
    found = list(values_of(DASHBOARD, "expr"))
    for variable, value in GRAFANA_VARIABLES.items():
        found = [expression.replace(variable, value) for expression in found]
    return found


def values_of(part: Any, name: str) -> Iterator[str]:
    """Every value under a name, wherever it is."""
    if isinstance(part, dict):
        for key, value in part.items():
            if key == name:
                yield value
            else:
                yield from values_of(value, name)
    elif isinstance(part, list):
        for value in part:
            yield from values_of(value, name)


def names_in(expression: str) -> set[str]:
    """The metrics that an expression asks for."""
    bare = re.sub(r'"[^"]*"', "", expression)
    return set(re.findall(r"\b(?:raftkv_\w+|up|ALERTS)\b", bare))


# --- figures that exist ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shown() -> Iterator[str]:
    """What a real node shows that was used, refused something, and has written a snapshot."""
    options = {"limits": {"snapshot_after_entries": 5}}
    with LocalCluster(shards=2, options=options) as cluster:
        with cluster.client() as client:
            for number in range(20):
                client.put(f"key/{number}", b"value")
                client.get(f"key/{number}")
        leader = cluster.leader_of(0)
        assert leader is not None
        with Client(cluster.node(leader).url) as client, pytest.raises(RaftkvError):
            client.transfer_leader(0, "nobody")
        cluster.wait_for(lambda: bool(cluster.shards()[0]["snapshot"]), "a snapshot")
        with urllib.request.urlopen(f"{cluster.node(leader).url}/metrics") as answer:  # noqa: S310
            yield answer.read().decode()


def samples(shown: str) -> dict[str, list[Any]]:
    """Samples by their names."""
    found: dict[str, list[Any]] = {}
    for family in text_string_to_metric_families(shown):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample)
    return found


@pytest.mark.cluster
def test_alerts_and_dashboard_ask_for_figures_that_exist(shown: str) -> None:
    """A figure that is renamed must be renamed here too, or an alert stays silent for ever."""
    asked = set().union(
        *(names_in(rule["expr"]) for rule in RULES),
        *(names_in(expression) for expression in dashboard_expressions()),
    )
    assert len(asked) > 15
    assert asked - set(samples(shown)) - ELSEWHERE == set()


@pytest.mark.cluster
def test_the_figures_that_alerts_rest_on_say_what_is(shown: str) -> None:
    """A healthy shard has its leader, its replicas, no lag to speak of and synced its log."""
    by_name = samples(shown)

    def value_of(name: str, **labels: str) -> float:
        (value,) = [one.value for one in by_name[name] if labels.items() <= one.labels.items()]
        return float(value)

    assert value_of("raftkv_shard_has_leader", shard="0") == 1
    assert value_of("raftkv_shard_replicas", shard="0") == 3
    assert value_of("raftkv_shard_digest_mismatch", shard="0") == 0
    assert value_of("raftkv_events_total", kind="entries_lost") == 0
    assert value_of("raftkv_shard_elections_total", shard="0") >= 1
    lags = [
        one for one in by_name["raftkv_shard_replica_lag_entries"] if one.labels["shard"] == "0"
    ]
    assert len([one for one in lags if one.labels["shard"] == "0"]) == 2
    assert value_of("raftkv_wal_fdatasync_seconds_count") >= 1
    counts = [one.value for one in by_name["raftkv_wal_fdatasync_seconds_bucket"]]
    assert counts == sorted(counts)
    assert counts[-1] == value_of("raftkv_wal_fdatasync_seconds_count")
    assert 0 < value_of("raftkv_disk_free_bytes") <= value_of("raftkv_disk_size_bytes")


def test_certificates_are_shown_with_the_end_of_the_one_that_ends_first(tmp_path: Path) -> None:
    """Also of a file with several, as peer_ca is while a CA is replaced."""
    before = time.time()
    make_certificates(tmp_path / "a", {"n1": ["n1"]}, days=10)
    make_certificates(tmp_path / "b", {"n1": ["n1"]}, days=20)
    both = tmp_path / "both.crt"
    both.write_bytes((tmp_path / "b/n1.crt").read_bytes() + (tmp_path / "a/n1.crt").read_bytes())
    files = {"http": str(tmp_path / "b/n1.crt"), "ca": str(both)}
    days = {name: (ends - before) / 86_400 for name, ends in expiries(files).items()}
    assert days == {"http": pytest.approx(20, abs=0.1), "ca": pytest.approx(10, abs=0.1)}


def test_a_certificate_that_cannot_be_read_hides_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The log names it; the node refuses such a file by itself where it needs it."""
    make_certificates(tmp_path, {"n1": ["n1"]})
    (tmp_path / "bad").write_text("no certificate")
    files = {"http": str(tmp_path / "bad"), "ca": str(tmp_path / "none")}
    files["peer"] = str(tmp_path / "n1.crt")
    assert list(expiries(files)) == ["peer"]
    assert str(tmp_path / "bad") in caplog.text
    assert str(tmp_path / "none") in caplog.text


def test_a_disk_that_is_gone_spoils_no_scrape(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its figures are missing, the others are there."""
    machine = MachineMetrics(WebConfig(node_name="n1", data_dir=str(tmp_path / "x")))
    names = [family.name for family in machine.collect()]
    assert names == ["raftkv_certificate_expiry_timestamp_seconds"]
    assert "No such file or directory" in caplog.text


# --- alerts ---------------------------------------------------------------------------------------


def test_every_alert_is_tested_to_fire_and_to_keep_still() -> None:
    """In alerts_test.yml, which deploy/validate runs."""
    fires: set[str] = set()
    still: set[str] = set()
    for test in TESTS:
        for case in test["alert_rule_test"]:
            (fires if case["exp_alerts"] else still).add(case["alertname"])
    names = {rule["alert"] for rule in RULES}
    assert fires == names
    assert still == names


def test_every_alert_says_what_to_do() -> None:
    """Its runbook is a heading of the operations guide."""
    guide = (TOP / "docs" / "operations.md").read_text()
    headings = {line.lstrip("# ").lower() for line in guide.splitlines() if line.startswith("#")}
    for rule in RULES:
        document, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert document == "docs/operations.md"
        assert anchor in headings, rule["alert"]
        assert anchor == rule["alert"].lower()
        assert rule["labels"]["severity"] in {"warning", "critical"}


# --- dashboard ------------------------------------------------------------------------------------


def test_the_dashboard_is_one_that_grafana_knows() -> None:
    """Read by the types of Grafana's own schema and written again, nothing of it is lost."""
    register_default_plugins()
    again = json.loads(JSONEncoder(sort_keys=True).encode(Dashboard.from_json(DASHBOARD)))
    assert lost(DASHBOARD, again) == []


def lost(old: Any, new: Any, at: str = "dashboard") -> list[str]:
    """Where ``new`` does not have what ``old`` has; more is allowed, as defaults are."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            where
            for name in old
            for where in lost(old[name], new.get(name, "nothing"), f"{at}.{name}")
        ]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [
            where
            for place, (one, other) in enumerate(zip(old, new, strict=True))
            for where in lost(one, other, f"{at}[{place}]")
        ]
    return [] if old == new else [at]


def test_every_expression_of_the_dashboard_is_promql(tmp_path: Path) -> None:
    """Promtool reads each of them, as a rule."""
    expressions = dashboard_expressions()
    assert len(expressions) > 20
    rules = [
        {"record": f"panel:number:{number}", "expr": expression}
        for number, expression in enumerate(expressions)
    ]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = run_tool("promtool", "check", "rules", file)
    assert done.returncode == 0, done.stdout + done.stderr


def test_panels_have_their_own_place_and_name() -> None:
    """None covers another, all fit into 24 columns, and each says what it shows."""
    taken: dict[tuple[int, int], str] = {}
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, f"{panel['title']} covers {taken[x, y]}"
                taken[x, y] = panel["title"]
        assert panel["title"]
        assert panel["type"] == "row" or panel["description"]
