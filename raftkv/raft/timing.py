"""How long the steps of Raft take, and the chance that keeps replicas out of step."""

from typing import Protocol

import msgspec


class Timing(msgspec.Struct, frozen=True):
    """Raft's times, in seconds (Raft paper 5.6: broadcast << election timeout << failures)."""

    heartbeat_s: float
    election_min_s: float
    election_max_s: float

    @property
    def idle_heartbeat_s(self) -> float:
        """How long an idle leader may be silent: three of its heartbeats may be late."""
        return max(self.heartbeat_s, self.election_min_s / 4)


class RandomSource(Protocol):
    """Randomness as a seam: ``random.Random`` fits, seeded in simulation."""

    def random(self) -> float:
        """Return a float in [0, 1)."""
