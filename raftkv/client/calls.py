"""Carries calls out over HTTP: the attempts that :mod:`raftkv.client.attempts` asks for.

A call blocks the thread that makes it until there is an answer or an error.
"""

import functools
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from raftkv.client.answers import Answer, problem_of, retry_after_s
from raftkv.client.attempts import (
    RESEND_WINDOW_S,
    Attempt,
    Attempts,
    FailedAttempt,
    Lost,
    NotSent,
    renewed,
)
from raftkv.client.clock import boot_s
from raftkv.client.endpoints import Endpoints
from raftkv.client.errors import RaftkvError, UnavailableError
from raftkv.client.transport import Transport

WAIT_SAID_S = 1.0
"""After so long a call tells whoever wants to know what it waits for."""

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
        attempt: Callable[[float], _Result | FailedAttempt],
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
        attempt: Callable[[float], _Result | FailedAttempt],
        timeout_s: float,
        *,
        reads: bool,
        repeatable: bool,
        renew: Callable[[int], bool],
    ) -> tuple[_Result, bool]:
        began_s = boot_s()
        outcome = attempt(began_s + timeout_s)
        if not isinstance(outcome, FailedAttempt):  # as mostly: then nothing has to be decided
            return outcome, False
        attempts = Attempts(
            self._endpoints,
            reads=reads,
            repeatable=repeatable,
            began_s=began_s,
            timeout_s=timeout_s,
            resend_window_s=RESEND_WINDOW_S,
        )
        while isinstance(outcome, FailedAttempt):
            outcome = _renewed(outcome, attempts, renew)
            self._waits_for = outcome.error
            self._sleep(attempts.failed(outcome, boot_s()))
            attempts.paused(outcome, boot_s())
            outcome = attempt(attempts.deadline_s)
        return outcome, attempts.exposed

    def attempt(self, call: Call, deadline: float) -> Answer | FailedAttempt:
        """Ask one node, for no longer than an attempt may take."""
        attempt = Attempt(
            self._endpoints,
            reads=call.reads,
            repeatable=call.repeatable,
            left_s=deadline - boot_s(),
            attempt_timeout_s=self._attempt_timeout_s,
        )
        timeout = {"Raftkv-Timeout-Ms": str(attempt.server_timeout_ms)}
        try:
            answer = self._transport.send(
                attempt.endpoint,
                call.method,
                call.target,
                headers={**self._headers, **call.headers(), **timeout},
                body=call.body,
                timeout_s=attempt.timeout_s,
            )
        except NotSent as error:
            return attempt.not_sent(error)
        except Lost as error:
            return attempt.lost(error)
        if not answer.is_success:
            problem = problem_of(answer)
            if not (call.missing_is_answer and problem.code == "key_not_found"):
                return attempt.refused(problem, retry_after_s(problem, answer))
        attempt.answered()
        return answer

    def move_on(self, answer: Answer) -> None:
        """The node that gave this answer cannot do now what it was asked: ask another one."""
        self._endpoints.move_on(answer.endpoint)


def _renewed(
    failure: FailedAttempt, attempts: Attempts, renew: Callable[[int], bool]
) -> FailedAttempt:
    """Begin another session if that is allowed and helps, and say what the failure then means."""
    born_after = failure.born_after
    if born_after is None or not attempts.may_renew(failure, boot_s()) or not renew(born_after):
        return failure
    return renewed(failure)
