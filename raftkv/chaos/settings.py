"""What a run is asked to be."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from raftkv.chaos.errors import ChaosError
from raftkv.chaos.etcd_target import EtcdTarget
from raftkv.chaos.nemesis import RECOVER_S
from raftkv.chaos.plan import FAULTS
from raftkv.chaos.raftkv_target import SNAPSHOT_AFTER_ENTRIES, RaftkvTarget, obstacle
from raftkv.chaos.remote_target import RemoteTarget
from raftkv.chaos.target import Nodes
from raftkv.client.endpoints import normalized
from raftkv.testing.processes import RAFTKV_COMMAND

WORKLOADS = ("register", "append", "set", "bank", "lock")
"""Those that ask for nothing but what every store has."""
MIXED = "mixed"

ACTIVE_KEYS = 8
ACTIVE_KEYS_MIXED = 2
"""Of each kind. With 20 clients two or three work on one key at a time."""

System = Literal["raftkv", "etcd"]


@dataclass(frozen=True, slots=True)
class Settings:
    """One run. ``endpoints`` are of a cluster that is not ours: nothing is done to it then."""

    out: Path
    seed: int
    duration_s: float = 60.0
    nodes: int = 3
    shards: int = 4
    replicas: int | None = None
    """Of each shard; three by default, or as many as there are nodes."""
    workload: str = MIXED
    faults: Sequence[str] = FAULTS
    clients: int = 20
    rate_per_s: float = 200.0
    system: System = "raftkv"
    endpoints: Sequence[str] = ()
    token: str | None = field(default=None, repr=False)
    ca: str | None = None
    election_timeout_ms: int = 1000
    snapshot_after_entries: int = SNAPSHOT_AFTER_ENTRIES
    recover_s: float = RECOVER_S
    """How long the healed cluster may take until it is as before."""
    command: Sequence[str] = RAFTKV_COMMAND

    @property
    def workloads(self) -> Sequence[str]:
        """Those that clients choose from at each turn: one, or all for ``mixed``."""
        return WORKLOADS if self.workload == MIXED else (self.workload,)

    @property
    def active_keys(self) -> int:
        """How many keys of a kind are hot at a time."""
        return ACTIVE_KEYS_MIXED if self.workload == MIXED else ACTIVE_KEYS

    def check(self) -> None:
        """Refuse what cannot work, before anything is made.

        Raises:
            ChaosError: One line about the first thing that cannot work.
        """
        if self.workload not in (*WORKLOADS, MIXED):
            raise ChaosError(
                f"--workload {self.workload}: use one of {', '.join((*WORKLOADS, MIXED))}"
            )
        if self.replicas is not None and self.replicas > self.nodes:
            raise ChaosError(f"--replicas {self.replicas}: use at most --nodes {self.nodes}")
        for kind in self.faults:
            self._check_fault(kind)
        for url in self.endpoints:
            try:
                normalized(url)
            except ValueError as error:
                raise ChaosError(f"--endpoints: {error}") from error
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise ChaosError(f"--out {self.out}: is there and not empty; name a new directory")

    def _check_fault(self, kind: str) -> None:
        if kind not in FAULTS:
            raise ChaosError(f"--faults {kind}: use some of {', '.join(FAULTS)}")
        if self.endpoints:
            raise ChaosError(
                f"--faults {kind}: nothing is done to a cluster at --endpoints; leave it out"
            )
        if self.system == "etcd" and kind not in EtcdTarget.supported:
            raise ChaosError(
                f"--faults {kind}: etcd can have {', '.join(sorted(EtcdTarget.supported))}"
            )
        why = obstacle(kind, self.nodes) if self.system == "raftkv" else None
        if why is not None:
            raise ChaosError(f"--faults {kind}: {why}, or leave it out")

    @property
    def hurts(self) -> bool:
        """Whether anything is done to the target."""
        return bool(self.faults) and not self.endpoints

    def target(self) -> Nodes | RemoteTarget:
        """The system to drive."""
        if self.endpoints:
            return RemoteTarget(self.endpoints, system=self.system, token=self.token, ca=self.ca)
        if self.system == "etcd":
            return EtcdTarget(
                self.out, nodes=self.nodes, election_timeout_ms=self.election_timeout_ms
            )
        return RaftkvTarget(
            self.out,
            nodes=self.nodes,
            shards=self.shards,
            replicas=self.replicas,
            faults=self.faults,
            election_timeout_ms=self.election_timeout_ms,
            seed=self.seed,
            snapshot_after_entries=self.snapshot_after_entries,
            command=self.command,
        )

    def arguments(self) -> list[str]:
        """The command that makes the same run again, into another directory."""
        again = [
            *("raftkv", "chaos", "--duration", f"{self.duration_s:g}", "--seed", str(self.seed)),
            *("--workload", self.workload, "--clients", str(self.clients)),
            *("--rate", f"{self.rate_per_s:g}"),
        ]
        if self.endpoints:
            return [*again, "--endpoints", ",".join(self.endpoints), "--api", self.system]
        again += ["--nodes", str(self.nodes), "--faults", ",".join(self.faults) or "none"]
        again += ["--election-timeout-ms", str(self.election_timeout_ms)]
        if self.system == "etcd":
            return [*again, "--target", "etcd"]
        again += ["--shards", str(self.shards)]
        if self.replicas is not None:
            again += ["--replicas", str(self.replicas)]
        return [*again, "--snapshot-after-entries", str(self.snapshot_after_entries)]
