"""What came of a load, as the processes that make it write it down."""

import array
from collections.abc import Sequence

import msgspec

NOT_FOUND = "404"


class Window(msgspec.Struct):
    """The requests whose intended start lies in one second of the measured time."""

    statuses: dict[str, int] = {}
    """How many got which status; ``error``: the connection broke, ``none``: no answer came,
    ``part``: an operation of the batch failed, ``unsent``: no connection was free."""
    latencies: bytes = b""
    """Of the accepted ones, seconds, as an array of single floats."""


class Tally(msgspec.Struct, tag="tally"):
    """What came of a load."""

    windows: list[Window]
    refused_latencies: bytes = b""
    refusals: dict[str, int] = {}
    """How many were refused with which code of the problem document."""
    bad_refusals: list[str] = []
    """Refusals that are not definite or without Retry-After: examples."""
    bad_refusals_count: int = 0
    errors: list[str] = []
    late_s_max: float = 0.0
    """The longest time from an intended start to the sending: want of processor for the client."""
    cpu_s: float = 0.0
    """Processor time of the client in the measured time."""

    def count(self, status: str) -> int:
        """How many got this status, in all windows."""
        return sum(window.statuses.get(status, 0) for window in self.windows)

    def statuses(self) -> dict[str, int]:
        """How many got which status, in all windows."""
        names = sorted({name for window in self.windows for name in window.statuses})
        return {name: self.count(name) for name in names}

    def accepted(self) -> "array.array[float]":
        """Latencies of everything that was accepted."""
        return floats(b"".join(window.latencies for window in self.windows))

    @property
    def total(self) -> int:
        """How many requests were offered."""
        return sum(self.statuses().values())


def floats(data: bytes) -> "array.array[float]":
    """Latencies as they are kept in a tally."""
    values = array.array("f")
    values.frombytes(data)
    return values


def is_accepted(status: str) -> bool:
    """Whether the request was carried out; reading a key that is not there was, too."""
    return status[0] == "2" or status == NOT_FOUND


def merged(tallies: Sequence[Tally]) -> Tally:
    """One tally of what several processes did in the same time."""
    windows = []
    for parts in zip(*(tally.windows for tally in tallies), strict=True):
        statuses: dict[str, int] = {}
        for part in parts:
            _add(statuses, part.statuses)
        windows.append(Window(statuses, b"".join(part.latencies for part in parts)))
    refusals: dict[str, int] = {}
    for tally in tallies:
        _add(refusals, tally.refusals)
    return Tally(
        windows=windows,
        refusals=refusals,
        refused_latencies=b"".join(tally.refused_latencies for tally in tallies),
        bad_refusals=[text for tally in tallies for text in tally.bad_refusals],
        bad_refusals_count=sum(tally.bad_refusals_count for tally in tallies),
        errors=[text for tally in tallies for text in tally.errors],
        late_s_max=max(tally.late_s_max for tally in tallies),
        cpu_s=sum(tally.cpu_s for tally in tallies),
    )


def _add(sums: dict[str, int], part: dict[str, int]) -> None:
    for name, count in part.items():
        sums[name] = sums.get(name, 0) + count
