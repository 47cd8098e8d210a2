"""When a call is tried again, where, and what its caller may believe in the end: no I/O, no clock.

Whoever carries a call out asks :class:`Attempt` which node to ask and tells it how that ended; what
this says goes to :class:`Attempts`, which answers with a pause before the next attempt or with the
error that ends the call. The rule that everything here serves: a write that may have been applied
is sent again only if it carries its own idempotency, and once any attempt had an unknown outcome,
only an answer that speaks for the write itself (a result or a failed precondition) makes the call
definite again.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import msgspec

from raftkv.client.answers import Problem
from raftkv.client.endpoints import Endpoints
from raftkv.client.errors import RaftkvError, UnavailableError, UnknownOutcomeError

BACKOFF_FIRST_S = 0.05
BACKOFF_MAX_S = 1.0

RESEND_WINDOW_S = 100.0
"""The server remembers an outcome for at least 120 s; a write is not sent again near that age.

Nor is what is refused as forgotten within it taken for unknown: whatever had applied a copy of the
write would still know its session. So no copy was applied, and as the session is refused for good,
none will be.
"""

SERVER_TIMEOUT_MS_MAX = 60_000
_ANSWER_MARGIN_S = 0.2
"""The server gives up this much earlier than we do, so that its own account of it arrives."""


class NotSent(Exception):  # noqa: N818 -- a fact about an attempt, always handled inside
    """No connection could be made: nothing has seen the request that could carry it out."""


class ConnectionRefused(NotSent):
    """The other side said so: nothing listens there, or no way leads there."""


class RefusedForGood(ConnectionRefused):
    """It will say so again: there is no such host, it speaks another scheme or is not trusted."""


class Lost(Exception):  # noqa: N818 -- a fact about an attempt, always handled inside
    """The answer did not come, or not whole: the request may have been carried out."""


@dataclass(frozen=True, slots=True)
class FailedAttempt:
    """Why an attempt failed; :class:`Attempts` tries again, or ends the call with ``error``.

    ``about_write``: it is the write's own result, not this attempt's.
    ``born_after``: its session is not known; one born later would be.
    """

    error: RaftkvError
    definite: bool
    transient: bool
    about_write: bool = False
    retry_after_s: float = 0.0
    node_is_suspect: bool = False
    born_after: int | None = None


class Attempt:
    """One request at one node. Its end is told once, by one of the methods.

    Args:
        endpoints: Where the choice is made, and what this attempt says of the node is kept.
        reads: The request changes nothing, so failure is always definite.
        repeatable: Carrying it out twice is carrying it out once.
        left_s: Seconds until the call's deadline.
        attempt_timeout_s: How long one node may take while another one could be asked.

    Attributes:
        endpoint: The URL of the node to ask.
        timeout_s: How long to wait for it.
    """

    __slots__ = ("_endpoints", "_reads", "endpoint", "timeout_s")

    def __init__(
        self,
        endpoints: Endpoints,
        *,
        reads: bool,
        repeatable: bool,
        left_s: float,
        attempt_timeout_s: float,
    ) -> None:
        self._endpoints = endpoints
        self._reads = reads
        self.endpoint = endpoints.pick()
        self.timeout_s = max(0.001, left_s)
        if repeatable:
            # A node may be frozen: keep time for asking another one.
            self.timeout_s = min(self.timeout_s, attempt_timeout_s)

    @property
    def server_timeout_ms(self) -> int:
        """How long the server may work on it."""
        wait_s = self.timeout_s
        server_s = wait_s - _ANSWER_MARGIN_S if wait_s > 2 * _ANSWER_MARGIN_S else wait_s / 2
        return min(SERVER_TIMEOUT_MS_MAX, max(1, int(server_s * 1000)))

    def not_sent(self, error: NotSent) -> FailedAttempt:
        """Nothing has seen the request: definite, and another node may do."""
        self._endpoints.suspect(self.endpoint)
        if isinstance(error, ConnectionRefused):
            for_good = isinstance(error, RefusedForGood)
            self._endpoints.refused(self.endpoint, for_good=for_good)
        return FailedAttempt(
            UnavailableError(str(error)), definite=True, transient=True, node_is_suspect=True
        )

    def lost(self, error: Lost) -> FailedAttempt:
        """There is no answer, or not a whole one: a write may have been carried out."""
        self._endpoints.suspect(self.endpoint)
        kind = UnavailableError if self._reads else UnknownOutcomeError
        return FailedAttempt(
            kind(str(error)), definite=self._reads, transient=True, node_is_suspect=True
        )

    def answered(self) -> None:
        """The node did what was asked."""
        self._endpoints.answered(self.endpoint)

    def refused(self, problem: Problem, retry_after_s: float) -> FailedAttempt:
        """The node answered that it did not do it, or that it does not know."""
        self._endpoints.answered(self.endpoint)
        failure = failure_of_problem(problem, reads=self._reads, retry_after_s=retry_after_s)
        if failure.transient:
            self._endpoints.move_on(self.endpoint)
        return failure


class Attempts:
    """All attempts of one call, within one deadline. It is told of those that failed.

    Args:
        endpoints: The nodes that are asked.
        reads: The call changes nothing.
        repeatable: Carrying it out twice is carrying it out once.
        began_s: When the call began, by the clock of every ``now_s``.
        timeout_s: How long it may take.
        resend_window_s: How old a write of unknown outcome may be that is sent again.
        uniform: Draws the jitter of pauses.
    """

    __slots__ = (
        "_began_s",
        "_count",
        "_endpoints",
        "_reads",
        "_repeatable",
        "_resend_window_s",
        "_said",
        "_uniform",
        "_unknown",
        "deadline_s",
    )

    def __init__(
        self,
        endpoints: Endpoints,
        *,
        reads: bool,
        repeatable: bool,
        began_s: float,
        timeout_s: float,
        resend_window_s: float,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._endpoints = endpoints
        self._reads = reads
        self._repeatable = repeatable
        self._began_s = began_s
        self._resend_window_s = resend_window_s
        self._uniform = uniform
        self.deadline_s = began_s + timeout_s
        self._count = 0
        self._unknown: RaftkvError | None = None
        self._said: FailedAttempt | None = None
        """What a node said last; it explains more than that another one is down."""

    @property
    def exposed(self) -> bool:
        """Whether an attempt so far had an unknown outcome."""
        return self._unknown is not None

    def may_renew(self, failure: FailedAttempt, now_s: float) -> bool:
        """Whether another session may be begun for the next attempt: no copy was applied.

        Where that was done, :func:`renewed` is what the failure means.
        """
        return (
            failure.born_after is not None
            and self._unknown is None
            and now_s - self._began_s <= self._resend_window_s
        )

    def failed(self, failure: FailedAttempt, now_s: float) -> float:
        """Say how many seconds to wait before the next attempt.

        Raises:
            RaftkvError: There is none; this is what the caller may believe.
        """
        self._count += 1
        if not failure.definite:
            self._unknown = failure.error
        pause_s = self._pause_s(failure)
        if (
            not failure.transient
            or now_s + pause_s >= self.deadline_s
            or (
                failure.node_is_suspect
                and self._unknown is None
                and self._endpoints.all_refuse_since(self._began_s)
            )
            or (self._unknown is not None and not self._repeatable)
            or self._is_too_old(now_s)
        ):
            if self._unknown is None and failure.error.status is None and self._said is not None:
                raise self._said.error
            raise _verdict(failure, self._unknown)
        if failure.error.status is not None:
            self._said = failure
        return pause_s

    def paused(self, failure: FailedAttempt, now_s: float) -> None:
        """The pause after ``failure`` is over; a machine may have been suspended in it.

        Raises:
            RaftkvError: The write is too old now to be sent again.
        """
        if self._is_too_old(now_s):
            raise _verdict(failure, self._unknown)

    def _is_too_old(self, now_s: float) -> bool:
        """Whether a write of unknown outcome may be forgotten by now."""
        is_unknown = self._unknown is not None and not self._reads
        return is_unknown and now_s - self._began_s > self._resend_window_s

    def _pause_s(self, failure: FailedAttempt) -> float:
        """How long to wait: not at all for another node, else ever longer with jitter.

        If no node can be reached there is one short pause before they are all asked once more.
        """
        nodes = len(self._endpoints)
        if failure.node_is_suspect and self._count < 2 * nodes:
            if self._count != nodes:
                return 0.0
            return backoff_s(1, failure.retry_after_s, self._uniform)
        if failure.born_after is not None and self._count == 1:
            return 0.0
        return backoff_s(self._count, failure.retry_after_s, self._uniform)


def backoff_s(
    attempts: int,
    retry_after_s: float,
    uniform: Callable[[float, float], float] = random.uniform,
) -> float:
    """How long to wait after that many attempts: at least what the server asks for.

    The jitter keeps clients that failed together from coming back together.
    """
    longest_s = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(attempts - 1, 10))
    return retry_after_s + longest_s * uniform(0.5, 1.0)


def failure_of_problem(problem: Problem, *, reads: bool, retry_after_s: float) -> FailedAttempt:
    """What a problem says of the attempt that met it; a read that fails is always definite."""
    definite = problem.definite or reads
    return FailedAttempt(
        msgspec.structs.replace(problem, definite=definite).error(),
        definite=definite,
        transient=problem.transient,
        about_write=problem.code == "precondition",
        retry_after_s=retry_after_s,
        born_after=problem.born_after,
    )


def renewed(failure: FailedAttempt) -> FailedAttempt:
    """What a refusal means once another session was begun: the write was not applied."""
    message = (
        f"the session was forgotten, and the next one was not reached in time: {failure.error}"
    )
    error = UnavailableError(message, status=failure.error.status)
    return replace(failure, error=error, definite=True, transient=True)


def _verdict(failure: FailedAttempt, unknown: RaftkvError | None) -> RaftkvError:
    """What the caller may believe after all attempts."""
    if unknown is None or failure.about_write:
        return failure.error
    if isinstance(failure.error, UnknownOutcomeError):
        return failure.error
    verdict = UnknownOutcomeError(f"{unknown}; then: {failure.error}", status=failure.error.status)
    verdict.__cause__ = unknown
    return verdict
