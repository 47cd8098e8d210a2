"""A full disk: writes are refused for certain, reads go on, and with space so do writes."""

from pathlib import Path

from raftkv.chaos import disks
from raftkv.chaos.faults.base import Fault
from raftkv.chaos.waiting import wait_until
from raftkv.client import Client, RaftkvError

FILLER_BYTES = 16_384
FILLER_WRITES = 40
WRITE_S = 3.0
FILLER_PREFIX = "chaos-filler/"
SPACE_S = 20.0


class FullDisk(Fault):
    """The disks of one node, or of a minority, are filled to the last byte."""

    def start(self) -> None:
        """Fill them."""
        self.take(self.choose())
        self._full: set[str] = set()
        self._ballasts: dict[str, Path] = {}
        self._number = 0
        for name in self.victims:
            self._ballasts[name] = disks.fill(self.context.raftkv.data(name))

    def observe(self) -> None:
        """All of them say that they have no space.

        A node notices when it wants its next segment, so big values are written meanwhile.
        """
        if not self.effective:
            self._write_much()
        for name in self.victims:
            facts = self.context.raftkv.facts(name)
            if facts is not None and not facts["has_space"]:
                self._full.add(name)
        self.effective = self._full == set(self.victims)

    def _write_much(self) -> None:
        urls = self.context.raftkv.cluster.urls
        value = bytes(FILLER_BYTES)
        with Client(urls, timeout_s=WRITE_S, attempt_timeout_s=WRITE_S) as client:
            for _ in range(FILLER_WRITES):
                self._number = (self._number + 1) % 64
                try:
                    client.put(f"{FILLER_PREFIX}{self._number}", value)
                except RaftkvError:
                    return  # full, or about to elect another leader: the next look will tell

    def stop(self) -> None:
        """Give the space back, and wait until the nodes have noticed."""
        for ballast in self._ballasts.values():
            ballast.unlink(missing_ok=True)
        if not wait_until(self._has_space, SPACE_S):
            self.context.findings.append(
                f"{self.names}: no space within {SPACE_S:.0f} s after the disk was emptied"
            )

    def _has_space(self) -> bool:
        facts = [self.context.raftkv.facts(name) for name in self.victims]
        return all(said is not None and said["has_space"] for said in facts)
