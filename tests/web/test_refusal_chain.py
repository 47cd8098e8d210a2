"""Each layer of a refusal knows every reason of the one below (docs/architecture.md)."""

from typing import get_args, get_type_hints

import pytest

from raftkv.client import RaftkvError
from raftkv.client.answers import Problem
from raftkv.client.errors import PreconditionFailedError, ServerError, UnknownOutcomeError
from raftkv.core.operations import Refused
from raftkv.engine.requests import failure_of
from raftkv.raft.proposals import GroupFailure
from raftkv.rpc.messages import Failure
from raftkv.web.api.problems import from_failure, from_refusal

REFUSALS = get_args(get_type_hints(Refused)["reason"])
GROUP_FAILURES = get_args(get_type_hints(GroupFailure)["reason"])
FAILURES = get_args(get_type_hints(Failure)["code"])


def error_of(document: dict[str, object]) -> RaftkvError:
    """What a client makes of a problem document."""
    known = {name: document[name] for name in ("code", "detail", "definite")}
    return Problem(**known).error()  # type: ignore[arg-type] # the three are what they should be


@pytest.mark.parametrize("reason", GROUP_FAILURES)
def test_a_groups_failure_keeps_whether_it_is_definite(reason: str) -> None:
    """From the group to the client no outcome gets more certain, nor less."""
    failed = GroupFailure(reason)  # type: ignore[arg-type] # each of its reasons
    failure = failure_of(failed)
    assert failure.code in FAILURES
    assert failure.definite is failed.definite
    error = error_of(from_failure(failure, read=False).document())
    assert isinstance(error, UnknownOutcomeError) is not failed.definite


@pytest.mark.parametrize("code", FAILURES)
def test_every_failure_has_a_problem_and_an_error_of_its_own(code: str) -> None:
    """A client gets ServerError, the error of a bug, for a bug alone."""
    error = error_of(from_failure(Failure(code, "why", definite=True), read=False).document())  # type: ignore[arg-type] # each of its codes
    assert isinstance(error, ServerError) is (code == "internal")


@pytest.mark.parametrize("reason", REFUSALS)
def test_every_refusal_has_a_problem_and_an_error_of_its_own(reason: str) -> None:
    """A refusal is definite, but for one that a forgotten session answers."""
    error = error_of(from_refusal(Refused(reason)).document())  # type: ignore[arg-type] # each
    assert isinstance(error, UnknownOutcomeError) is (reason == "forgotten")
    assert isinstance(error, PreconditionFailedError) is (reason == "precondition")
    assert not isinstance(error, ServerError)
