"""What is in deploy/ passes its tools, and agrees with itself and with the code."""

import shutil
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from deployment import DEPLOY, documents, run_tool

from raftkv.cli.certs import make_certificates
from raftkv.cli.config import load
from raftkv.engine.config import NodeConfig
from raftkv.engine.engine import DRAIN_S, HANDOVER_S

MANIFESTS = {
    (one["kind"], one["metadata"]["name"]): one
    for one in documents(DEPLOY / "kubernetes" / "raftkv.yaml")
}
STATEFUL_SET = MANIFESTS["StatefulSet", "raftkv"]
POD = STATEFUL_SET["spec"]["template"]["spec"]
COMPOSE = documents(DEPLOY / "docker" / "compose.yaml")[0]


# --- tools ----------------------------------------------------------------------------------------


def test_the_tools_find_no_fault() -> None:
    """deploy/validate passes, and no check was left out."""
    done = run_tool(DEPLOY / "validate")
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout.splitlines()
    assert all(line.startswith("ok ") for line in said), done.stdout
    assert len(said) == (DEPLOY / "validate").read_text().count('\ncheck "')


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("systemd/raftkv.service", "NoNewPrivileges=yes", "NoNewPrivilege=yes"),
        ("systemd/raftkv.service", "ProtectSystem=strict\nProtectHome=yes\nPrivateUsers=yes", ""),
        ("docker/Dockerfile", "WORKDIR /source", "WORKDIR source"),
        ("docker/compose.yaml", "stop_grace_period", "stop_grace"),
        ("kubernetes/raftkv.yaml", "maxUnavailable", "maxUnavailabel"),
        ("kubernetes/raftkv.yaml", "replicas: 3", 'replicas: "3"'),
        ("prometheus/prometheus.yml", "scrape_interval: 5s", "scrape_intervall: 5s"),
        ("prometheus/alerts_test.yml", "takes longer than 235ms", "takes longer than 1ms"),
    ],
)
def test_the_tools_see_a_fault(tmp_path: Path, file: str, old: str, new: str) -> None:
    """Each file with a fault in it is the one, and the only one, that fails."""
    copy = shutil.copytree(DEPLOY, tmp_path / "deploy")
    text = (copy / file).read_text()
    for line in old.split("\n"):
        assert line in text
        text = text.replace(line, new, 1)
    (copy / file).write_text(text)
    done = run_tool(copy / "validate")
    faults = [line for line in done.stdout.splitlines() if line.startswith("FAIL ")]
    failed = {line.split()[1].rstrip(":") for line in faults}
    assert (done.returncode, failed) == (1, {file}), done.stdout


# --- configurations -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates for the names of all deployments."""
    directory = tmp_path_factory.mktemp("certificates") / "certs"
    names = ("n1", "n2", "n3", "raftkv-0", "raftkv-1", "raftkv-2")
    make_certificates(directory, {name: [name] for name in names})
    return directory


def test_compose_gives_each_node_what_its_configuration_asks_for(
    certs: Path, tmp_path: Path
) -> None:
    """Mounted as compose mounts them, configuration and certificates load under each name."""
    services = COMPOSE["services"]
    for name, service in services.items():
        assert service["environment"] == {"RAFTKV_NODE": name}
        root = tmp_path / name
        for volume in service["volumes"]:
            source, target = volume.split(":")[:2]
            if not source.startswith("."):
                assert (source, target) == (name, "/var/lib/raftkv")
                assert source in COMPOSE["volumes"]
                continue
            inside = root / target.lstrip("/")
            inside.parent.mkdir(parents=True, exist_ok=True)
            origin = DEPLOY / "docker" / source
            shutil.copy(certs / origin.name if "certs" in source else origin, inside)
        config = load(root / "etc/raftkv/node.toml", node=name)
        assert set(config.cluster.nodes) == set(services)
        assert all(address.host in services for address in config.addresses.values())
        published = int(service["ports"][0].rsplit(":")[-1])
        assert published == config.http_listen.port
        assert config.node.data_dir.startswith("/var/lib/raftkv/")


def kubernetes_config(certs: Path, directory: Path, pod: str) -> NodeConfig:
    """What a pod reads, with its certificates in ``directory`` instead of their mount."""
    text = MANIFESTS["ConfigMap", "raftkv"]["data"]["node.toml"]
    for mount in container()["volumeMounts"]:
        if mount["name"] == "certs":
            path = mount.get("subPath") or mount["subPathExpr"].replace("$(RAFTKV_NODE)", pod)
            copy = directory / Path(mount["mountPath"]).name
            shutil.copy(certs / path, copy)
            text = text.replace(mount["mountPath"], str(copy))
    assert "/etc/raftkv-certs" not in text, "a path that nothing is mounted at"
    (directory / "node.toml").write_text(text)
    return load(directory / "node.toml", node=pod)


def container() -> Any:
    """The container of the node."""
    (one,) = POD["containers"]
    return one


def test_every_pod_finds_its_name_its_peers_and_its_certificates(
    certs: Path, tmp_path: Path
) -> None:
    """Pods are called as the configuration calls nodes, and found where it says."""
    spec = STATEFUL_SET["spec"]
    pods = [f"{STATEFUL_SET['metadata']['name']}-{number}" for number in range(spec["replicas"])]
    headless = MANIFESTS["Service", spec["serviceName"]]["spec"]
    assert headless["clusterIP"] == "None"
    assert headless["publishNotReadyAddresses"] is True
    for pod in pods:
        config = kubernetes_config(certs, tmp_path, pod)
        assert list(config.cluster.nodes) == pods
        for name, address in config.addresses.items():
            assert address == (f"{name}.{spec['serviceName']}", config.peer_listen.port)
        ports = {port["name"]: port["containerPort"] for port in container()["ports"]}
        assert ports == {"peer": config.peer_listen.port, "https": config.http_listen.port}
        assert config.node.data_dir.startswith("/var/lib/raftkv/")


def test_pods_start_together_and_stop_one_by_one() -> None:
    """A first pod that had to be ready before the second starts would wait for ever."""
    assert STATEFUL_SET["spec"]["podManagementPolicy"] == "Parallel"
    budget = MANIFESTS["PodDisruptionBudget", "raftkv"]["spec"]
    assert budget["maxUnavailable"] == 1


def test_what_selects_pods_selects_these() -> None:
    """Services, budget, policy and affinity name the labels that the pods have."""
    labels = STATEFUL_SET["spec"]["template"]["metadata"]["labels"]
    found = list(selectors(list(MANIFESTS.values())))
    assert len(found) >= 6
    assert all(selector == labels for selector in found)


def selectors(part: Any) -> Iterator[Any]:
    """Every label selector in a manifest."""
    if isinstance(part, dict):
        for name, value in part.items():
            if name == "matchLabels" or (name == "selector" and "matchLabels" not in value):
                yield value
            else:
                yield from selectors(value)
    elif isinstance(part, list):
        for value in part:
            yield from selectors(value)


# --- what they have in common ---------------------------------------------------------------------


def seconds(text: str) -> int:
    """A duration as systemd and compose write it."""
    return int(text.removesuffix("s"))


def unit(option: str) -> list[str]:
    """The values that the systemd unit gives an option."""
    lines = (DEPLOY / "systemd" / "raftkv.service").read_text().splitlines()
    return [line.partition("=")[2] for line in lines if line.startswith(f"{option}=")]


@pytest.mark.parametrize(
    "grace_s",
    [
        lambda: seconds(unit("TimeoutStopSec")[0]),
        lambda: seconds(COMPOSE["x-node"]["stop_grace_period"]),
        lambda: POD["terminationGracePeriodSeconds"],
    ],
    ids=["systemd", "compose", "kubernetes"],
)
def test_the_grace_is_longer_than_a_node_needs(grace_s: Callable[[], int]) -> None:
    """Twice what handing over and finishing may take, before SIGKILL comes."""
    assert grace_s() >= 2 * (HANDOVER_S + DRAIN_S)


def test_nobody_runs_it_as_root() -> None:
    """The user of the image is a number, and Kubernetes and compose take nothing away from it."""
    image = (DEPLOY / "docker" / "Dockerfile").read_text()
    user = next(line.split()[1] for line in image.splitlines() if line.startswith("USER "))
    uid = int(user.split(":")[0])
    assert uid > 0
    assert POD["securityContext"]["runAsUser"] == uid
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert COMPOSE["x-node"]["cap_drop"] == ["ALL"]
    assert unit("User") == ["raftkv"]


def test_open_files_are_enough_for_the_connections() -> None:
    """The limits are above http.connections_max and leave room for files and peers."""
    example = tomllib.loads((DEPLOY / "node.toml").read_text())
    needed = example["http"]["connections_max"] + 1024
    assert int(unit("LimitNOFILE")[0]) >= needed
    assert COMPOSE["x-node"]["ulimits"]["nofile"] >= needed
