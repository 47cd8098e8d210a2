"""A cluster that somebody else runs: it is used, and nothing is done to it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from raftkv.chaos.agreement import disagreements
from raftkv.chaos.errors import ChaosError
from raftkv.chaos.raftkv_target import ONCE_ONLY_EVERY
from raftkv.chaos.store import Store
from raftkv.client import Client, RaftkvError
from raftkv.testing.etcd_client import EtcdClient

PROBE_KEY = "chaos-probe"
TIMEOUT_S = 5.0


class RemoteTarget:
    """Endpoints of a raftkv or etcd cluster.

    The keys of the workloads begin with ``register/``, ``append/``, ``{set-``, ``{bank-`` and
    ``lock/``; none of them may exist before.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        system: Literal["raftkv", "etcd"],
        token: str | None = None,
        ca: str | None = None,
    ) -> None:
        self.title = f"{system} at {', '.join(endpoints)}"
        self._endpoints = tuple(endpoints)
        self._system = system
        self._token = token
        self._ca = ca

    @property
    def names(self) -> tuple[str, ...]:
        """None: its nodes are not watched."""
        return ()

    def start(self) -> None:
        """Nothing: it runs already."""

    def check(self) -> None:
        """Find out whether it answers, and whether the keys of the workloads are free.

        Raises:
            ChaosError: It does not, or they are not.
        """
        try:
            store = self.connect(0)
            store.get(PROBE_KEY)
            for prefix in ("register/", "append/", "{set-", "{bank-", "lock/"):
                if next(iter(store.scan(prefix)), None) is not None:
                    raise ChaosError(
                        f"{self.title}: has keys that begin with {prefix} already; remove them, "
                        "or the history would begin in the middle"
                    )
        except (RaftkvError, ValueError) as error:
            raise ChaosError(f"{self.title}: {error}") from error
        store.close()

    def close(self) -> None:
        """Leave it as it is."""

    def connect(self, client: int) -> Store:
        """A client of all endpoints; with raftkv some of them send nothing twice."""
        if self._system == "etcd":
            first = client % len(self._endpoints)
            return EtcdClient([*self._endpoints[first:], *self._endpoints[:first]])
        return self._client(idempotent=client % ONCE_ONLY_EVERY != ONCE_ONLY_EVERY - 1)

    def _client(self, *, idempotent: bool) -> Client:
        return Client(
            self._endpoints,
            token=self._token,
            ca=self._ca,
            timeout_s=TIMEOUT_S,
            connections=1,
            idempotent=idempotent,
        )

    def leads(self, name: str) -> Mapping[int, int] | None:
        """Nothing is known of its nodes."""
        del name
        return None

    def disagreements(self) -> list[str]:
        """Shards whose replicas differ; etcd's replicas cannot be compared."""
        if self._system == "etcd":
            return []
        with self._client(idempotent=True) as client:
            return disagreements(client)

    def keep_logs(self, directory: Path) -> None:
        """Its logs are where its owner has them."""
