"""Reads what strace wrote of several processes, and judges the order of one write's steps."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

SYSCALLS = "pwrite64,pwritev,pwritev2,fdatasync,fsync,sendto,write,writev,sendmsg"
OPTIONS = ("-f", "-ttt", "-T", "-s", "4096", "-e", f"trace={SYSCALLS}")
"""How strace must be called for this."""

_WRITES = frozenset({"pwrite64", "pwritev", "pwritev2"})
_ANSWERS = frozenset({"write", "writev", "sendto", "sendmsg"})

_LINE = re.compile(r"(?P<thread>\d+) +(?P<at>\d+\.\d+) (?P<rest>.*)")
_WHOLE = re.compile(r"(?P<name>\w+)\((?P<args>.*)\) += (?P<result>-?\d+).*<(?P<took>[\d.]+)>")
_BEGUN = re.compile(r"(?P<name>\w+)\((?P<args>.*?) *<unfinished \.\.\.>")
_ENDED = re.compile(
    r"<\.\.\. (?P<name>\w+) resumed>(?P<args>.*)\) += (?P<result>-?\d+).*<(?P<took>[\d.]+)>"
)


@dataclass(frozen=True)
class SystemCall:
    """One call, with its begin and end in seconds."""

    thread: int
    name: str
    arguments: str
    result: int
    began: float
    ended: float

    @property
    def descriptor(self) -> str:
        """The first argument."""
        return self.arguments.partition(",")[0].strip()


def parse(lines: Iterable[str]) -> list[SystemCall]:
    """The finished calls of one or more logs, in the order of their ends."""
    calls = []
    begun: dict[tuple[int, str], tuple[float, str]] = {}
    for line in lines:
        if (head := _LINE.fullmatch(line.rstrip("\n"))) is None:
            continue
        thread, at, rest = int(head["thread"]), float(head["at"]), head["rest"]
        if (call := _BEGUN.fullmatch(rest)) is not None:
            begun[thread, call["name"]] = (at, call["args"])
        elif (call := _ENDED.fullmatch(rest)) is not None:
            began, arguments = begun.pop((thread, call["name"]), (at, ""))
            arguments += call["args"]
            ended = began + float(call["took"])
            calls.append(
                SystemCall(thread, call["name"], arguments, int(call["result"]), began, ended)
            )
        elif (call := _WHOLE.fullmatch(rest)) is not None:
            ended = at + float(call["took"])
            calls.append(
                SystemCall(thread, call["name"], call["args"], int(call["result"]), at, ended)
            )
    return sorted(calls, key=lambda call: call.ended)


def synced_at(calls: Sequence[SystemCall], threads: frozenset[int], value: str) -> float | None:
    """When a node's log had ``value`` for good: written, then an fdatasync of that file was 0."""
    for write in calls:
        if write.thread not in threads or write.name not in _WRITES or write.result <= 0:
            continue
        if value not in write.arguments:
            continue
        for sync in calls:
            if (
                sync.thread in threads
                and sync.name == "fdatasync"
                and sync.result == 0
                and sync.descriptor == write.descriptor
                and sync.began >= write.ended
            ):
                return sync.ended
    return None


def answered_at(
    calls: Sequence[SystemCall], threads: frozenset[int], status: str, body: str
) -> float | None:
    """When the worker began to send the answer: the status line and the body that names the key."""
    for call in calls:
        if (
            call.thread in threads
            and call.name in _ANSWERS
            and f"HTTP/1.1 {status}" in call.arguments
            and body in call.arguments
        ):
            return call.began
    return None


def nodes_that_synced_first(
    calls: Sequence[SystemCall],
    nodes: Mapping[str, frozenset[int]],
    worker: frozenset[int],
    *,
    key: str,
    value: str,
) -> set[str]:
    """Which nodes had ``value`` durably before the 201 for ``key`` began to leave."""
    answered = answered_at(calls, worker, "201", key)
    assert answered is not None, "the log does not show the answer"
    synced = {node: synced_at(calls, threads, value) for node, threads in nodes.items()}
    return {node for node, at in synced.items() if at is not None and at <= answered}
