"""The procedures of docs/operations.md, as an operator carries them out: three nodes over TLS."""

import shutil
import time
from collections.abc import Iterator

import pytest
import urllib3
from prometheus_client.parser import text_string_to_metric_families

from raftkv.testing.ports import PortReservation
from raftkv.web.ops.machine_metrics import expiries
from tests.support.real_command import run
from tests.support.secure_nodes import Place, SecureNodes

pytestmark = pytest.mark.cluster

HOST = "127.0.0.1"
NAMES = ("n1", "n2", "n3")
PATIENCE_S = 30


@pytest.fixture(scope="module")
def ports() -> Iterator[tuple[int, ...]]:
    """For each node a peer port and an HTTP port, and one port more."""
    reservation = PortReservation(2 * len(NAMES) + 1)
    yield reservation.ports
    reservation.release()


@pytest.fixture(scope="module")
def nodes(
    ports: tuple[int, ...], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SecureNodes]:
    """The cluster; each test leaves it as it was, but for the last."""
    places = {
        name: Place(HOST, ports[number], ports[number + len(NAMES)])
        for number, name in enumerate(NAMES)
    }
    with SecureNodes(tmp_path_factory.mktemp("operations"), places) as running:
        running.wait_ready()
        yield running


def stop(nodes: SecureNodes, *names: str) -> None:
    """Stop nodes at the same time."""
    for name in names:
        nodes.processes[name].terminate()
    for name in names:
        assert nodes.processes[name].wait(PATIENCE_S)
        assert nodes.processes[name].exit_code == 0


def start(nodes: SecureNodes, *names: str) -> None:
    """Start nodes and wait until they are ready."""
    for name in names:
        nodes.processes[name].start()
    for name in names:
        wait_ready(nodes, name)


def wait_ready(nodes: SecureNodes, name: str) -> None:
    """Wait for a node by ``raftkv ready``."""
    config = nodes.directory / name / "node.toml"
    done = run("ready", "--config", config, "--wait", str(PATIENCE_S))
    assert done.returncode == 0, done.stderr + nodes.log(name)


def restart(nodes: SecureNodes, *names: str) -> None:
    """Stop nodes and start them."""
    stop(nodes, *names)
    start(nodes, *names)


def linked(nodes: SecureNodes, name: str) -> bool:
    """Whether a node reaches all the others."""
    with nodes.client(name) as client:
        return all(row["reachable"] for row in client.status("cluster")["nodes"])


def test_a_node_shows_until_when_its_certificates_are_valid(nodes: SecureNodes) -> None:
    """At /metrics, each that it uses, as the certificates say themselves."""
    http = urllib3.PoolManager(ca_certs=nodes.ca)
    token = {"Authorization": f"Bearer {nodes.tokens['read']}"}
    text = http.request("GET", nodes.url("n2") + "/metrics", headers=token).data.decode()
    shown = {
        sample.labels["certificate"]: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "raftkv_certificate_expiry_timestamp_seconds"
    }
    files = {"http": "n2.crt", "peer": "n2.crt", "ca": "ca.crt"}
    assert shown == expiries({name: str(nodes.certs / file) for name, file in files.items()})


def test_the_authority_is_replaced(nodes: SecureNodes) -> None:
    """Trust both, change the pairs, trust the new one alone; all nodes are linked meanwhile."""
    certs, new = nodes.certs, nodes.directory / "new"
    hosts = [f"--node={name}={HOST}" for name in NAMES]
    assert run("certs", "--out", new, *hosts).returncode == 0
    trusted = certs / "ca.crt"
    trusted.write_bytes(trusted.read_bytes() + (new / "ca.crt").read_bytes())
    restart(nodes, *NAMES)
    for names_now in NAMES[:1], NAMES[1:]:
        for name in names_now:
            for suffix in ("crt", "key"):
                shutil.copy(new / f"{name}.{suffix}", certs / f"{name}.{suffix}")
        restart(nodes, *names_now)
        assert all(linked(nodes, name) for name in NAMES), "old and new certificates side by side"
    shutil.copy(new / "ca.crt", trusted)
    restart(nodes, *NAMES)
    assert all(linked(nodes, name) for name in NAMES)


def test_a_node_moves_to_another_address(nodes: SecureNodes, ports: tuple[int, ...]) -> None:
    """It is started there, the others are told and restarted one by one, and none is missed."""
    old, new = f'"{HOST}:{ports[2]}"', f'"{HOST}:{ports[-1]}"'
    stop(nodes, "n3")
    for name in NAMES:
        config = nodes.directory / name / "node.toml"
        text = config.read_text()
        assert old in text
        config.write_text(text.replace(old, new))
    nodes.processes["n3"].start()
    for name in ("n1", "n2"):
        restart(nodes, name)
    wait_ready(nodes, "n3")
    assert all(linked(nodes, name) for name in NAMES)


def test_copies_of_all_stopped_nodes_are_a_backup(nodes: SecureNodes) -> None:
    """Restored together they bring back the state of then, revisions and all."""
    with nodes.client() as client:
        client.put("color", "red")
        then = client.get("color")
    stop(nodes, *NAMES)
    for name in NAMES:
        shutil.copytree(nodes.data(name), nodes.data(name).with_name("copy"))
    start(nodes, *NAMES)
    with nodes.client() as client:
        client.put("color", "blue")
    stop(nodes, *NAMES)
    for name in NAMES:
        shutil.rmtree(nodes.data(name))
        nodes.data(name).with_name("copy").rename(nodes.data(name))
    start(nodes, *NAMES)
    with nodes.client() as client:
        assert client.get("color") == then


def test_a_survivor_without_a_quorum_still_shows_what_it_has(nodes: SecureNodes) -> None:
    """Linearizable reads are refused; ``scan --stale`` saves what is there."""
    with nodes.client() as client:
        client.put("saved/1", "from the flames")
    # A majority has it, and n1 once it has answered a stale read with it.
    with nodes.client("n1") as client:
        deadline = time.monotonic() + PATIENCE_S
        while client.get("saved/1", consistency="stale") is None:
            assert time.monotonic() < deadline, "n1 never caught up"
    for name in ("n2", "n3"):
        nodes.processes[name].kill()
    at = ("--endpoint", nodes.url("n1"), "--ca", nodes.ca, "--token", nodes.tokens["read"])
    refused = run("scan", "saved/", *at, "--timeout", "2")
    assert refused.returncode == 3, refused.stdout
    saved = run("scan", "saved/", "--stale", *at)
    assert saved.stdout == "saved/1\tfrom the flames\n", saved.stderr
    start(nodes, "n2", "n3")


def test_a_node_that_lost_its_disk_is_not_let_in(nodes: SecureNodes) -> None:
    """It refuses to start, then the others refuse it; they go on, and it never becomes ready."""
    nodes.processes["n3"].kill()
    shutil.rmtree(nodes.data("n3"))
    nodes.processes["n3"].start()
    assert nodes.processes["n3"].wait(PATIENCE_S)
    assert nodes.processes["n3"].exit_code == 1
    assert nodes.said("n3", "is not initialised: run raftkv init if this node is new")
    config = nodes.directory / "n3" / "node.toml"
    assert run("init", "--config", config).returncode == 0
    nodes.processes["n3"].start()
    done = run("ready", "--config", config, "--wait", "3")
    assert done.returncode == 1
    assert "no leader" in done.stderr
    assert nodes.said("n3", "came back with another identity")
    with nodes.client("n1", "n2") as client:
        client.put("still", "here")
