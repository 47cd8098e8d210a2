"""What a stage of hardship has shown, and which promises were broken in it."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raftkv.check.history import INFO, OK, Operation

REFUSALS = frozenset({"UnavailableError", "BusyError", "DiskFullError"})
UNKNOWN = "UnknownOutcomeError"
"""What hardship may do to a request; every other error of the client is a promise broken."""

STATUSES = frozenset({200, 201, 204, 304, 404, 412, 429, 503, 504, 507})
"""What a node may answer to a request that makes sense (docs/http-api.md, errors)."""

SPARE_S = 5.0
"""A client looks at its clock when the machine lets it run; a request that hangs takes longer."""

ALARMING = ("digest_mismatch", "entries_lost")
"""Events that must never be (docs/operations.md, alerts)."""


@dataclass
class Evidence:
    """All that is judged of one stage."""

    stage: str
    timeout_s: float
    """Of every request, with all its attempts."""
    seconds: float = 0.0
    ok: int = 0
    """Requests that were answered; that a condition does not hold is an answer."""
    refused: int = 0
    unknown: int = 0
    longest_wait_s: float = 0.0
    errors: Counter[str] = field(default_factory=Counter)
    """What requests ended with instead of an answer, by the name of the client's error."""
    answers: Counter[tuple[int, str]] = field(default_factory=Counter)
    """What nodes answered to single attempts: status and the code of the problem ("" if none)."""
    hardships: Counter[str] = field(default_factory=Counter)
    """What was done, and how often it was seen to take effect; zero where it never was."""
    restarts: int = 0
    """Nodes that the stage itself ended and started again."""
    memory: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Bytes of the largest engine and worker, and how many they may have."""
    findings: list[str] = field(default_factory=list)
    """What else was wrong: a replica that differs, a process that ended, an alarm."""

    def count(self, operations: Iterable[Operation]) -> None:
        """Count what clients were told; the end of an operation that has none is ``seconds``."""
        for one in operations:
            error = one.fields.get("error", "")
            if error:
                self.errors[error.partition(":")[0]] += 1
            self.unknown += one.status == INFO
            self.refused += one.status != INFO and bool(error)
            self.ok += one.status == OK or (one.status != INFO and not error)


def longest_wait_s(events: Iterable[Mapping[str, Any]], now_ns: int) -> float:
    """The longest time between the two ends of an operation; without an end, until now."""
    begun: dict[int, int] = {}
    longest = 0
    for event in events:
        if event["type"] == "invoke":
            begun[event["process"]] = event["time_ns"]
        else:
            longest = max(longest, event["time_ns"] - begun.pop(event["process"]))
    return max([longest, *(now_ns - at for at in begun.values())]) / 1e9


def broken(evidence: Evidence) -> list[str]:
    """One line for each promise that was broken; none if all were kept."""
    return [
        *_of_requests(evidence),
        *(f"{what} was never seen to take effect" for what in _unseen(evidence)),
        *_of_memory(evidence.memory),
        *evidence.findings,
    ]


def _of_requests(evidence: Evidence) -> list[str]:
    found = [] if evidence.ok else ["no request was answered"]
    longest = evidence.timeout_s + SPARE_S
    if evidence.longest_wait_s > longest:
        found.append(f"a request took {evidence.longest_wait_s:.1f} s of {evidence.timeout_s:g} s")
    found += [
        f"{times} requests ended with {name}"
        for name, times in sorted(evidence.errors.items())
        if name not in REFUSALS and name != UNKNOWN
    ]
    found += [
        f"{times} times a node answered {status} {code or 'without a problem document'}"
        for (status, code), times in sorted(evidence.answers.items())
        if not _is_defined(status, code)
    ]
    return found


def _is_defined(status: int, code: str) -> bool:
    """Whether an answer says what became of the request."""
    return status in STATUSES and code != "internal" and (status < 400 or code != "")


def _unseen(evidence: Evidence) -> list[str]:
    return [what for what, times in evidence.hardships.items() if times == 0]


def _of_memory(memory: Mapping[str, tuple[int, int]]) -> list[str]:
    return [
        f"a {kind} took {peak / 2**20:.0f} MiB of {most / 2**20:.0f}"
        for kind, (peak, most) in memory.items()
        if peak > most
    ]


def alarms(cluster: Mapping[str, Any], nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a cluster says that is wrong with it, and what each of its nodes says of itself."""
    health = cluster["health"]
    found = [] if health["state"] == "healthy" else [f"{health['state']}: {health['sentence']}"]
    found += [f"{name} does not answer" for name in cluster["not_answering"]]
    for node in nodes:
        name = node["node"]
        if not node["has_space"]:
            found.append(f"{name} has no space")
        if node["disagrees"]:
            found.append(f"{name} disagrees: {node['disagrees']}")
        found += [
            f"{name} has counted {times} of {kind}"
            for kind in ALARMING
            if (times := node["metrics"]["events"][kind])
        ]
        found += [
            f"{name}: the replica of shard {row['shard']} differs from its leader's"
            for row in node["shards"]
            if row["digest_mismatch"]
        ]
    return found


def table(stages: Sequence[Evidence]) -> str:
    """One row for each stage."""
    rows = [
        "| stage | seconds | ok | refused | unknown | longest wait | restarts | seen | verdict |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in stages:
        seen = ", ".join(f"{what} {times}" for what, times in one.hardships.items())
        rows.append(
            f"| {one.stage} | {one.seconds:.0f} | {one.ok:,} | {one.refused:,} | {one.unknown:,} "
            f"| {one.longest_wait_s:.1f} s of {one.timeout_s:g} | {one.restarts} | {seen} "
            f"| {'**broken**' if broken(one) else 'kept'} |"
        )
    return "\n".join(rows)
