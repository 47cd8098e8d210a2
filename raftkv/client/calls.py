"""Trying until there is an answer, the time is up, or trying again could do harm.

The rule that everything here serves: a write that may have been applied is sent again only if it
carries its own idempotency, and once any attempt had an unknown outcome, only an answer that
speaks for the write itself (a result or a failed precondition) makes the call definite again.
"""

import functools
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import msgspec

from raftkv.client.clock import boot_s
from raftkv.client.endpoints import Endpoints
from raftkv.client.errors import (
    AccessError,
    BusyError,
    CrossShardError,
    DefiniteError,
    DiskFullError,
    InvalidRequestError,
    KeyReusedError,
    NotFoundError,
    PreconditionFailedError,
    RaftkvError,
    ServerError,
    TooLargeError,
    UnavailableError,
    UnknownOutcomeError,
)
from raftkv.client.transport import Answer, Lost, NotSent, Refused, RefusedForGood, Transport

BACKOFF_FIRST_S = 0.05
BACKOFF_MAX_S = 1.0
WAIT_SAID_S = 1.0
"""After so long a call tells whoever wants to know what it waits for."""

RESEND_WINDOW_S = 100.0
"""The server remembers an outcome for at least 120 s; a write is not sent again near that age.

Nor is what is refused as forgotten within it taken for unknown: whatever had applied a copy of the
write would still know its session. So no copy was applied, and as the session is refused for good,
none will be.
"""

SERVER_TIMEOUT_MS_MAX = 60_000
_ANSWER_MARGIN_S = 0.2
"""The server gives up this much earlier than we do, so that its own account of it arrives."""

_STATUS_SUCCESS = range(200, 300)
_STATUS_NOT_MODIFIED = 304
_STATUS_NOT_FOUND = 404

_ERRORS: dict[str, type[DefiniteError]] = {
    "invalid": InvalidRequestError,
    "method_not_allowed": InvalidRequestError,
    "unsupported_media_type": InvalidRequestError,
    "not_acceptable": InvalidRequestError,
    "too_large": TooLargeError,
    "cross_shard": CrossShardError,
    "key_reused": KeyReusedError,
    "not_found": NotFoundError,
    "unauthorized": AccessError,
    "forbidden": AccessError,
    "busy": BusyError,
    "table_full": BusyError,
    "share_full": BusyError,
    "overloaded": BusyError,
    "disk_full": DiskFullError,
    "no_leader": UnavailableError,
    "unavailable": UnavailableError,
    "moved": UnavailableError,
    "too_stale": UnavailableError,
    "request_timeout": UnavailableError,
    "refused": UnavailableError,
    "timeout": UnavailableError,
    "unknown": UnavailableError,
}
_TRANSIENT = frozenset(
    {
        "busy",
        "table_full",
        "share_full",
        "overloaded",
        "disk_full",
        "no_leader",
        "unavailable",
        "moved",
        "too_stale",
        "request_timeout",
        "timeout",
        "unknown",
    }
)
_CODE_OF_STATUS = {
    400: "invalid",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    412: "precondition",
    413: "too_large",
    429: "busy",
    502: "unknown",
    503: "unknown",
    504: "unknown",
}
"""For answers without a problem document, which come from something between us and the server."""

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Call:
    """What to do: the same for every attempt.

    ``reads``: it changes nothing, so failure is always definite. ``repeatable``: applying it twice
    is applying it once, because it reads or carries its own idempotency. ``headers`` is called for
    each attempt, as the watermark in them moves.
    """

    method: str
    target: str
    headers: Callable[[], Mapping[str, str]] = dict
    body: bytes | None = None
    reads: bool = False
    repeatable: bool = False
    missing_is_answer: bool = False


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt failed. ``about_write``: it is the write's own result, not this attempt's.

    ``born_after``: its session is not known; one born later would be.
    """

    error: RaftkvError
    definite: bool
    transient: bool
    about_write: bool = False
    retry_after_s: float = 0.0
    node_is_suspect: bool = False
    born_after: int | None = None


class Problem(msgspec.Struct, frozen=True):
    """A problem document (RFC 9457), or one result of a batch that failed."""

    code: str
    detail: str = ""
    title: str = ""
    status: int | None = None
    definite: bool = False
    retry_after_ms: int | None = None
    revision: int | None = None
    born_after: int | None = None

    def error(self) -> RaftkvError:
        """The exception that says the same."""
        message = self.detail or self.title or self.code
        if self.code == "precondition":
            return PreconditionFailedError(
                message, status=self.status, current_revision=self.revision
            )
        if not self.definite:
            return UnknownOutcomeError(message, status=self.status)
        return _ERRORS.get(self.code, ServerError)(message, status=self.status)

    @property
    def transient(self) -> bool:
        """Whether trying again may help."""
        return self.code in _TRANSIENT


class Caller:
    """Carries out calls over several nodes, each within one deadline for all its attempts."""

    def __init__(
        self,
        endpoints: Endpoints,
        transport: Transport,
        *,
        attempt_timeout_s: float,
        headers: Mapping[str, str],
        sleep: Callable[[float], None] = time.sleep,
        on_wait: Callable[[RaftkvError], None] | None = None,
    ) -> None:
        self._endpoints = endpoints
        self._transport = transport
        self._attempt_timeout_s = attempt_timeout_s
        self._headers = headers
        self._sleep = sleep
        self._on_wait = on_wait
        self._waits_for: RaftkvError | None = None

    def run(self, call: Call, timeout_s: float) -> Answer:
        """Return the answer of success, or raise what the last attempt or the worst one says."""
        return self.run_exposed(call, timeout_s)[0]

    def run_exposed(self, call: Call, timeout_s: float) -> tuple[Answer, bool]:
        """As :meth:`run`; also whether an attempt before the answer had an unknown outcome.

        An answer that carries several outcomes, each perhaps a refusal, speaks for its own attempt
        only: what was refused in it may have been applied by the one before.
        """
        attempt = functools.partial(self.attempt, call)
        return self.repeat(attempt, timeout_s, reads=call.reads, repeatable=call.repeatable)

    def repeat(
        self,
        attempt: Callable[[float], _Result | Failure],
        timeout_s: float,
        *,
        reads: bool,
        repeatable: bool,
        renew: Callable[[int], bool] = lambda _: False,
    ) -> tuple[_Result, bool]:
        """Make attempts until one gives a result; each is told the deadline of them all.

        ``renew`` begins another session for the next attempt, born after the number that it is
        given, and returns whether that can help.

        Returns the result, and whether an attempt before it had an unknown outcome.
        """
        if self._on_wait is None:
            return self._repeat(attempt, timeout_s, reads=reads, repeatable=repeatable, renew=renew)
        self._waits_for = None
        timer = threading.Timer(WAIT_SAID_S, self._tell, (self._on_wait,))
        timer.daemon = True
        timer.start()
        try:
            return self._repeat(attempt, timeout_s, reads=reads, repeatable=repeatable, renew=renew)
        finally:
            timer.cancel()

    def _tell(self, on_wait: Callable[[RaftkvError], None]) -> None:
        on_wait(self._waits_for or UnavailableError(f"{self._endpoints.pick()}: no answer yet"))

    def _repeat(
        self,
        attempt: Callable[[float], _Result | Failure],
        timeout_s: float,
        *,
        reads: bool,
        repeatable: bool,
        renew: Callable[[int], bool],
    ) -> tuple[_Result, bool]:
        started = boot_s()
        deadline = started + timeout_s
        unknown: RaftkvError | None = None
        said: Failure | None = None  # by a node, last; it explains more than that another is down
        attempts = 0
        while True:
            outcome = attempt(deadline)
            attempts += 1
            if not isinstance(outcome, Failure):
                return outcome, unknown is not None
            if (
                outcome.born_after is not None
                and unknown is None
                and boot_s() - started <= RESEND_WINDOW_S
                and renew(outcome.born_after)
            ):
                outcome = _renewed(outcome)
            self._waits_for = outcome.error
            if not outcome.definite:
                unknown = outcome.error
            pause_s = self._pause_s(outcome, attempts)
            now = boot_s()
            if (
                not outcome.transient
                or now + pause_s >= deadline
                or (
                    outcome.node_is_suspect
                    and unknown is None
                    and self._endpoints.all_refuse_since(started)
                )
                or (unknown is not None and not repeatable)
                or (unknown is not None and not reads and now - started > RESEND_WINDOW_S)
            ):
                if unknown is None and outcome.error.status is None and said is not None:
                    raise said.error
                raise _verdict(outcome, unknown)
            if outcome.error.status is not None:
                said = outcome
            self._sleep(pause_s)
            if unknown is not None and not reads and boot_s() - started > RESEND_WINDOW_S:
                raise _verdict(outcome, unknown)  # this machine was suspended in the pause

    def attempt(self, call: Call, deadline: float) -> Answer | Failure:
        """Ask one node, for no longer than an attempt may take."""
        endpoint = self._endpoints.pick()
        timeout_s = max(0.001, deadline - boot_s())
        if call.repeatable:
            # A node may be frozen: keep time for asking another one.
            timeout_s = min(timeout_s, self._attempt_timeout_s)
        try:
            answer = self._transport.send(
                endpoint,
                call.method,
                call.target,
                headers={**self._headers, **call.headers(), **_time_left(timeout_s)},
                body=call.body,
                timeout_s=timeout_s,
            )
        except NotSent as error:
            self._endpoints.suspect(endpoint)
            if isinstance(error, Refused):
                self._endpoints.refused(endpoint, for_good=isinstance(error, RefusedForGood))
            return Failure(
                UnavailableError(str(error)),
                definite=True,
                transient=True,
                node_is_suspect=True,
            )
        except Lost as error:
            self._endpoints.suspect(endpoint)
            kind = UnavailableError if call.reads else UnknownOutcomeError
            return Failure(
                kind(str(error)), definite=call.reads, transient=True, node_is_suspect=True
            )
        self._endpoints.answered(endpoint)
        failure = _failure_of(answer, call)
        if failure is None:
            return answer
        if failure.transient:
            self._endpoints.move_on(endpoint)
        return failure

    def move_on(self, answer: Answer) -> None:
        """The node that gave this answer cannot do now what it was asked: ask another one."""
        self._endpoints.move_on(answer.endpoint)

    def _pause_s(self, failure: Failure, attempts: int) -> float:
        """How long to wait: not at all for another node, else ever longer with jitter.

        If no node can be reached there is one short pause before they are all asked once more.
        """
        nodes = len(self._endpoints)
        if failure.node_is_suspect and attempts < 2 * nodes:
            return 0.0 if attempts != nodes else backoff_s(1, failure.retry_after_s)
        if failure.born_after is not None and attempts == 1:
            return 0.0
        return backoff_s(attempts, failure.retry_after_s)


def backoff_s(attempts: int, retry_after_s: float) -> float:
    """How long to wait after that many attempts: at least what the server asks for.

    The jitter keeps clients that failed together from coming back together.
    """
    longest_s = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(attempts - 1, 10))
    return retry_after_s + longest_s * random.uniform(0.5, 1.0)  # noqa: S311 -- jitter only


def _renewed(failure: Failure) -> Failure:
    """What a refusal means once another session was begun: the write was not applied."""
    message = (
        f"the session was forgotten, and the next one was not reached in time: {failure.error}"
    )
    error = UnavailableError(message, status=failure.error.status)
    return replace(failure, error=error, definite=True, transient=True)


def _time_left(timeout_s: float) -> dict[str, str]:
    server_s = timeout_s - _ANSWER_MARGIN_S if timeout_s > 2 * _ANSWER_MARGIN_S else timeout_s / 2
    return {"Raftkv-Timeout-Ms": str(min(SERVER_TIMEOUT_MS_MAX, max(1, int(server_s * 1000))))}


def _verdict(failure: Failure, unknown: RaftkvError | None) -> RaftkvError:
    """What the caller may believe after all attempts."""
    if unknown is None or failure.about_write:
        return failure.error
    if isinstance(failure.error, UnknownOutcomeError):
        return failure.error
    verdict = UnknownOutcomeError(f"{unknown}; then: {failure.error}", status=failure.error.status)
    verdict.__cause__ = unknown
    return verdict


def _failure_of(answer: Answer, call: Call) -> Failure | None:
    """None if the answer is a success (or says that a key is missing, where that is one)."""
    if answer.status in _STATUS_SUCCESS or answer.status == _STATUS_NOT_MODIFIED:
        return None
    problem = problem_of(answer)
    if call.missing_is_answer and problem.code == "key_not_found":
        return None
    return failure_of_problem(
        problem, reads=call.reads, retry_after_s=_retry_after_s(problem, answer)
    )


def failure_of_problem(problem: Problem, *, reads: bool, retry_after_s: float) -> Failure:
    """What a problem says of the attempt that met it; a read that fails is always definite."""
    definite = problem.definite or reads
    return Failure(
        msgspec.structs.replace(problem, definite=definite).error(),
        definite=definite,
        transient=problem.transient,
        about_write=problem.code == "precondition",
        retry_after_s=retry_after_s,
        born_after=problem.born_after,
    )


def problem_of(answer: Answer) -> Problem:
    """Read a problem document; without one only the status speaks, and a 5xx is not definite."""
    if answer.headers.get("content-type", "").startswith("application/problem+json"):
        try:
            problem = msgspec.json.decode(answer.body, type=Problem)
        except msgspec.MsgspecError:
            pass  # not ours: judged by its status below, like any other foreign answer
        else:
            return msgspec.structs.replace(problem, status=answer.status)
    refused = 400 <= answer.status < 500  # noqa: PLR2004 -- the class of client errors
    return Problem(
        code=_CODE_OF_STATUS.get(answer.status, "internal"),
        detail=f"HTTP status {answer.status} without a problem document",
        status=answer.status,
        definite=refused,
    )


def _retry_after_s(problem: Problem, answer: Answer) -> float:
    if problem.retry_after_ms is not None:
        return problem.retry_after_ms / 1000
    text: Any = answer.headers.get("retry-after", "")
    return float(text) if text.isdecimal() else 0.0
