"""A cluster over several machines, as an operator makes it: addresses off loopback, TLS, tokens.

Each node is on a machine (a network namespace) of its own and runs by the command line of the
systemd unit; clients are on a fourth machine and have only what operators have, the command.
"""

import os
import re
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.deploy.deployment import DEPLOY
from tests.deploy.machines import HUB, Machines, machines
from tests.support.real_command import run
from tests.support.secure_nodes import Place, SecureNodes

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(
        os.getuid() != 0 or shutil.which("ip") is None, reason="only root can make networks"
    ),
]

NAMES = ("n1", "n2", "n3")
PEER_PORT, HTTP_PORT = 7001, 8000
PATIENCE_S = 30.0


class Operator:
    """Somebody at the hub with certificates, tokens and the raftkv command."""

    def __init__(self, network: Machines, cluster: SecureNodes) -> None:
        self._network = network
        self._cluster = cluster

    def does(
        self, *arguments: str, at: tuple[str, ...] = NAMES, role: str = "write"
    ) -> tuple[int, str]:
        """Run a command against these nodes; return its code and what it printed."""
        endpoints = [text for name in at for text in ("--endpoint", self._cluster.url(name))]
        proof = ("--ca", self._cluster.ca, "--token", self._cluster.tokens[role])
        done = run(
            *arguments, *endpoints, *proof, "--timeout", "20", before=self._network.inside(HUB)
        )
        return done.returncode, done.stdout or done.stderr

    def waits_until_ready(self, name: str) -> None:
        """Wait as in a rolling upgrade: on the node's own machine, by ``raftkv ready``."""
        config = self._cluster.directory / name / "node.toml"
        done = run("ready", "--config", config, "--wait", "30", before=self._network.inside(name))
        assert done.returncode == 0, done.stderr + self._cluster.log(name)


@pytest.fixture
def network() -> Iterator[Machines]:
    """Three machines and the hub between them."""
    with machines(*NAMES) as made:
        yield made


@pytest.fixture
def cluster(network: Machines, tmp_path: Path) -> Iterator[SecureNodes]:
    """A node on each."""
    places = {
        name: Place(network.address(name), PEER_PORT, HTTP_PORT, network.inside(name))
        for name in NAMES
    }
    with SecureNodes(tmp_path, places) as running:
        yield running


@pytest.fixture
def operator(network: Machines, cluster: SecureNodes) -> Operator:
    """Begins when all nodes are ready."""
    made = Operator(network, cluster)
    for name in NAMES:
        made.waits_until_ready(name)
    return made


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Wait for what takes its time."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def test_the_unit_runs_what_this_test_runs() -> None:
    """``ExecStart`` is the raftkv command with the arguments that the nodes here are given."""
    text = (DEPLOY / "systemd" / "raftkv.service").read_text()
    (line,) = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
    program, *arguments = shlex.split(line)
    assert Path(program).name == "raftkv"
    assert arguments == ["serve", "--config", "/etc/raftkv/node.toml"]


def test_three_machines(network: Machines, cluster: SecureNodes, operator: Operator) -> None:
    """Reads and writes through each; a cut cable and a stopped node are survived and come back."""
    for name in NAMES:
        assert operator.does("put", f"by/{name}", name, at=(name,))[0] == 0
    for name in NAMES:
        code, said = operator.does("scan", "by/", at=(name,), role="read")
        assert (code, said) == (0, "".join(f"by/{n}\t{n}\n" for n in NAMES))
        other = "n3" if name != "n3" else "n1"
        assert cluster.said(name, f"link to {other} is up")
    code, said = operator.does("put", "by/n1", "no", role="read")
    assert code == 3, said

    network.cut("n1")
    rest = ("n2", "n3")
    assert operator.does("put", "while", "n1 is cut off", at=rest)[0] == 0
    assert operator.does("get", "by/n1", at=rest) == (0, "n1")
    network.mend("n1")
    # Nobody told n1 that it was alone: it must find out, find the others and catch up.
    eventually(
        lambda: operator.does("get", "while", at=("n1",)) == (0, "n1 is cut off"),
        "n1 never served again after its cable was mended",
    )

    process = cluster.processes["n2"]
    process.terminate()
    assert process.wait(PATIENCE_S), "n2 did not stop"
    assert process.exit_code == 0
    others = ("n1", "n3")
    assert operator.does("put", "while", "n2 is away", at=others)[0] == 0
    process.start()
    operator.waits_until_ready("n2")
    assert operator.does("get", "while", at=("n2",)) == (0, "n2 is away")
