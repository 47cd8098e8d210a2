"""A cluster as its operators would make it off loopback: certificates, tokens, no cluster secret.

Everything comes from the commands that the documentation names: ``raftkv certs``, ``raftkv token``
and ``raftkv init``. The nodes may be anywhere that a command prefix can put them, for example in
network namespaces of their own.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from raftkv import Client
from raftkv.client import RaftkvError
from raftkv.testing.processes import NodeProcess
from tests.support.real_command import RAFTKV, run

READY_S = 45.0


@dataclass(frozen=True)
class Place:
    """Where a node is; ``prefix`` comes before its command."""

    host: str
    peer_port: int
    http_port: int
    prefix: tuple[str, ...] = ()


@dataclass
class SecureNodes:
    """Nodes with mutual TLS between them, and HTTPS and tokens for clients.

    Use as a context manager; ``tokens`` are by role.
    """

    directory: Path
    places: Mapping[str, Place]
    tokens: dict[str, str] = field(default_factory=dict)
    processes: dict[str, NodeProcess] = field(default_factory=dict)

    def __enter__(self) -> Self:
        try:
            self._make()
            for process in self.processes.values():
                process.start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    @property
    def certs(self) -> Path:
        """Where the certificates are."""
        return self.directory / "certs"

    @property
    def ca(self) -> str:
        """What clients trust."""
        return str(self.certs / "ca.crt")

    def url(self, name: str) -> str:
        """Where clients find a node."""
        place = self.places[name]
        return f"https://{place.host}:{place.http_port}"

    def data(self, name: str) -> Path:
        """A node's data directory."""
        return self.directory / name / "data"

    def log(self, name: str) -> str:
        """What a node has said."""
        return self.processes[name].log_tail()

    def said(self, name: str, *words: str) -> bool:
        """Whether a node has logged a line with all these words."""
        lines = self.log(name).splitlines()
        return any(all(word in line for word in words) for line in lines)

    def client(self, *names: str, role: str = "admin", timeout_s: float = 20) -> Client:
        """A client of these nodes, or of all, with the token of a role."""
        urls = [self.url(name) for name in names or self.places]
        return Client(urls, ca=self.ca, token=self.tokens[role], timeout_s=timeout_s)

    def wait_ready(self) -> None:
        """Wait until every node takes writes."""
        deadline = time.monotonic() + READY_S
        while not self._writes():
            said = "\n".join(self.log(name)[-2000:] for name in self.places)
            assert time.monotonic() < deadline, said
            time.sleep(0.2)

    def _writes(self) -> bool:
        try:
            for name in self.places:
                with self.client(name, timeout_s=3) as client:
                    client.put("ready", name)
        except RaftkvError:
            return False
        return True

    def _make(self) -> None:
        names = [f"--node={name}={place.host}" for name, place in self.places.items()]
        assert run("certs", "--out", self.certs, *names).returncode == 0
        toml = []
        for role in ("read", "write", "admin"):
            made = run("token", "--role", role, "--name", f"for {role}")
            self.tokens[role] = made.stderr.split()[-1]
            toml.append(made.stdout)
        for name, place in self.places.items():
            config = self.directory / name / "node.toml"
            config.parent.mkdir()
            config.write_text(self.node_toml(name) + "\n".join(toml))
            done = run("init", "--config", config)
            assert done.returncode == 0, done.stderr
            command: Sequence[str] = (*place.prefix, *RAFTKV)
            self.processes[name] = NodeProcess(name, config, config.with_name("log"), command)

    def node_toml(self, name: str) -> str:
        """A node's configuration, up to its tokens."""
        nodes = "\n".join(f'{n} = "{p.host}:{p.peer_port}"' for n, p in self.places.items())
        place, certs = self.places[name], self.certs
        return f"""
[cluster]
id = "secure"
shards = 2
replicas = 3
[cluster.nodes]
{nodes}
[node]
name = "{name}"
data_dir = "data"
[http]
listen = "{place.host}:{place.http_port}"
tls_cert = "{certs / name}.crt"
tls_key = "{certs / name}.key"
[security]
peer_ca = "{certs}/ca.crt"
peer_cert = "{certs / name}.crt"
peer_key = "{certs / name}.key"
"""

    def _stop(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            if not process.wait(20):
                process.kill()
