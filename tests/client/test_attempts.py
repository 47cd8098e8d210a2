"""The rule of retries by itself: whatever happens to a call, it is not done twice and not lied of.

A model of a server stands behind the rule: it applies what reaches it, and remembers the outcomes
of writes with an idempotency of their own for 120 s.
"""

import ast
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftkv.client import (
    DefiniteError,
    RaftkvError,
    TooLargeError,
    UnavailableError,
    UnknownOutcomeError,
)
from raftkv.client import attempts as module
from raftkv.client.answers import Problem
from raftkv.client.attempts import (
    BACKOFF_MAX_S,
    RESEND_WINDOW_S,
    Attempt,
    Attempts,
    ConnectionRefused,
    FailedAttempt,
    Lost,
    NotSent,
    RefusedForGood,
    renewed,
)
from raftkv.client.endpoints import SUSPECT_S, Endpoints

REMEMBERED_S = 120.0
ARRIVES_WITHIN_S = 15.0
ATTEMPT_S = 2.0
URLS = ("http://a:1", "http://b:1", "http://c:1")

BUSY = Problem(code="busy", definite=True)
UNKNOWN = Problem(code="unknown", definite=False)
TOO_LARGE = Problem(code="too_large", definite=True)
FORGOTTEN = Problem(code="forgotten", definite=False, born_after=7)

End = Literal[
    "refused", "refused for good", "not reached", "lost before", "lost after", "late", "busy",
    "unknown, not applied", "unknown, applied", "too large", "forgotten", "done",
]  # fmt: skip
ENDS: tuple[End, ...] = End.__args__  # type: ignore[attr-defined]


@dataclass
class Server:
    """Counts how often the one write was applied; ``late`` is when copies left that are under way.

    They arrive within a while, however long the client's machine sleeps then.
    """

    idempotent: bool
    applied_s: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)

    def take(self, now_s: float) -> None:
        """A copy of the request arrives."""
        if self.idempotent and any(now_s - at < REMEMBERED_S for at in self.applied_s):
            return
        self.applied_s.append(now_s)

    def settle(self, now_s: float) -> None:
        """All that was under way arrives."""
        for left_s in self.late:
            self.take(min(now_s, left_s + ARRIVES_WITHIN_S))
        self.late.clear()


@dataclass
class Play:
    """One call, its attempts ending as the script says; the last end of it goes on for ever."""

    script: list[tuple[End, float, float]]
    """How an attempt ends, what share of its time it takes, and for how long the machine sleeps
    in the pause after it."""
    reads: bool
    repeatable: bool
    timeout_s: float
    now_s: float = 50.0
    sent: int = 0
    renewals: int = 0

    def __post_init__(self) -> None:
        self.server = Server(self.repeatable)
        self.endpoints = Endpoints(URLS, clock=lambda: self.now_s)
        self.asked: list[tuple[float, str]] = []

    def run(self) -> RaftkvError | None:
        """Carry the call out as a client does; None if it succeeded."""
        attempts = Attempts(
            self.endpoints,
            reads=self.reads,
            repeatable=self.repeatable,
            began_s=self.now_s,
            timeout_s=self.timeout_s,
            resend_window_s=RESEND_WINDOW_S,
            uniform=Random(1).uniform,
        )
        try:
            while True:
                end, share, asleep_s = (
                    self.script.pop(0) if len(self.script) > 1 else self.script[0]
                )
                failure = self.attempt(attempts, end, share)
                if failure is None:
                    return None
                if attempts.may_renew(failure, self.now_s):
                    assert not attempts.exposed
                    self.renewals += 1
                    failure = renewed(failure)
                pause_s = attempts.failed(failure, self.now_s)
                assert 0.0 <= pause_s <= BACKOFF_MAX_S
                self.now_s += pause_s + asleep_s
                attempts.paused(failure, self.now_s)
        except RaftkvError as error:
            return error

    def attempt(  # noqa: PLR0911 -- one for each end
        self, attempts: Attempts, end: End, share: float
    ) -> FailedAttempt | None:
        """One attempt, and what it does to the server."""
        attempt = Attempt(
            self.endpoints,
            reads=self.reads,
            repeatable=self.repeatable,
            left_s=attempts.deadline_s - self.now_s,
            attempt_timeout_s=ATTEMPT_S,
        )
        self.server.settle(self.now_s)
        self.asked.append((self.now_s, attempt.endpoint))
        assert 0 < attempt.server_timeout_ms / 1000 <= max(0.001, attempt.timeout_s)
        self.now_s += share * min(attempt.timeout_s, ARRIVES_WITHIN_S)
        match end:
            case "refused":
                return attempt.not_sent(ConnectionRefused("nobody"))
            case "refused for good":
                return attempt.not_sent(RefusedForGood("no such host"))
            case "not reached":
                return attempt.not_sent(NotSent("too slow"))
            case "lost before":
                self.sent += 1
                return attempt.lost(Lost("reset"))
            case "lost after":
                self.take()
                return attempt.lost(Lost("reset"))
            case "late":
                self.sent += 1
                self.server.late.append(self.now_s)
                return attempt.lost(Lost("no answer in time"))
            case "unknown, applied":
                self.take()
                return attempt.refused(UNKNOWN, 0.0)
            case "done":
                self.take()
                attempt.answered()
                return None
        problems = {"busy": BUSY, "too large": TOO_LARGE, "forgotten": FORGOTTEN}
        return attempt.refused(problems.get(end, UNKNOWN), 0.0)

    def take(self) -> None:
        """The server carries the request out."""
        self.sent += 1
        self.server.take(self.now_s)


def write(script: list[tuple[End, float, float]], *, repeatable: bool = True) -> Play:
    """One that has much time."""
    return Play(list(script), reads=False, repeatable=repeatable, timeout_s=1000.0)


SCRIPTS = st.lists(
    st.tuples(
        st.sampled_from(ENDS),
        st.sampled_from((0.0, 0.2, 1.0)),
        st.sampled_from((0.0, 0.0, 80.0, 200.0)),
    ),
    min_size=1,
    max_size=12,
)
TIMEOUTS = st.sampled_from((0.0, 0.3, 5.0, 1000.0))


@given(script=SCRIPTS, repeatable=st.booleans(), timeout_s=TIMEOUTS)
def test_a_write_is_applied_once_at_most_and_nobody_is_told_a_lie(
    script: list[tuple[End, float, float]], *, repeatable: bool, timeout_s: float
) -> None:
    """Definite means never applied, success means applied once; all else is unknown."""
    play = Play(list(script), reads=False, repeatable=repeatable, timeout_s=timeout_s)
    verdict = play.run()
    play.server.settle(play.now_s)
    applied = len(play.server.applied_s)
    assert applied <= 1
    if verdict is None:
        assert applied == 1
    elif isinstance(verdict, DefiniteError):
        assert applied == 0
    else:
        assert isinstance(verdict, UnknownOutcomeError)


@given(script=SCRIPTS, timeout_s=TIMEOUTS)
def test_a_read_that_fails_is_definite(
    script: list[tuple[End, float, float]], timeout_s: float
) -> None:
    """It changes nothing, whatever happened to it."""
    verdict = Play(list(script), reads=True, repeatable=True, timeout_s=timeout_s).run()
    assert verdict is None or isinstance(verdict, DefiniteError)


@given(script=SCRIPTS, reads=st.booleans(), timeout_s=TIMEOUTS)
def test_a_call_ends_in_its_time(
    script: list[tuple[End, float, float]], *, reads: bool, timeout_s: float
) -> None:
    """No attempt but the first begins after the deadline, unless the machine slept over it."""
    awake = [(end, share, 0.0) for end, share, _ in script]
    play = Play(awake, reads=reads, repeatable=True, timeout_s=timeout_s)
    began_s = play.now_s
    play.run()
    assert all(at < began_s + timeout_s for at, _ in play.asked[1:])
    assert play.now_s <= began_s + max(0.001, timeout_s) + 1e-9


@given(
    before=st.lists(st.sampled_from(("busy", "not reached")), max_size=4), repeatable=st.booleans()
)
def test_what_is_certain_ends_the_call(before: list[End], *, repeatable: bool) -> None:
    """A refusal that trying again cannot change is the last thing that is heard."""
    steps: list[End] = [*before, "too large", "done"]
    play = write([(end, 0.0, 0.0) for end in steps], repeatable=repeatable)
    assert isinstance(play.run(), TooLargeError)
    assert len(play.asked) == len(before) + 1


def test_another_node_is_asked_at_once_and_all_once_more_after_a_pause() -> None:
    """Three that do not answer are asked twice each, with one short pause, then it backs off."""
    play = Play([("lost before", 0.0, 0.0)], reads=True, repeatable=True, timeout_s=3.0)
    play.run()
    times = [at for at, _ in play.asked]
    urls = [url for _, url in play.asked]
    assert set(urls[:3]) == set(urls[3:6]) == set(URLS)
    assert times[0] == times[1] == times[2] < times[3] == times[4] == times[5] < times[6]


def test_a_node_that_did_not_answer_is_left_for_a_while() -> None:
    """The next call goes elsewhere until then."""
    play = write([("lost before", 0.0, 0.0), ("done", 0.0, 0.0)])
    play.run()
    (_, lost), (_, answers) = play.asked
    play.script = [("busy", 0.0, 0.0), ("done", 0.0, 0.0)]
    play.run()
    assert lost != answers
    assert lost not in {url for at, url in play.asked[2:] if at < play.asked[0][0] + SUSPECT_S}


@pytest.mark.parametrize(("end", "rounds"), [("refused", 2), ("refused for good", 1)])
def test_a_call_ends_early_if_every_node_refuses_connections(end: End, rounds: int) -> None:
    """Each is asked twice, as one may just be restarting; a wrong name once."""
    play = Play([(end, 0.0, 0.0)], reads=False, repeatable=True, timeout_s=1000.0)
    assert isinstance(play.run(), UnavailableError)
    assert len(play.asked) == rounds * len(URLS)


def test_a_session_is_renewed_only_for_a_write_that_was_never_exposed() -> None:
    """And once, without a pause; a second refusal waits."""
    play = write([("forgotten", 0.0, 0.0), ("done", 0.0, 0.0)])
    assert play.run() is None
    assert play.renewals == 1
    assert play.asked[0][0] == play.asked[1][0]
    play = write([("lost before", 0.0, 0.0), ("forgotten", 0.0, 0.0)])
    assert isinstance(play.run(), UnknownOutcomeError)
    assert play.renewals == 0


def test_a_node_is_given_a_part_of_the_time_only_if_another_one_may_be_asked() -> None:
    """A write that is not repeatable waits for its answer as long as it can."""
    endpoints = Endpoints(URLS, clock=lambda: 0.0)
    for repeatable, timeout_s in ((True, ATTEMPT_S), (False, 9.0)):
        attempt = Attempt(
            endpoints, reads=False, repeatable=repeatable, left_s=9.0, attempt_timeout_s=ATTEMPT_S
        )
        assert attempt.timeout_s == timeout_s


@pytest.mark.parametrize("name", ["answers", "attempts", "endpoints", "errors"])
def test_the_rule_imports_no_transport(name: str) -> None:
    """Any client can use it, whatever carries its requests: no HTTP library, no socket, no loop."""
    source = Path(module.__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
    imported = {
        node.module if isinstance(node, ast.ImportFrom) else alias.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert not imported & {"urllib3", "socket", "asyncio", "time", "raftkv.client.transport"}
