"""What nodes tell their clients, compared with what was committed: exact, without any search.

Every entry that is committed is applied once more, in order, to a state machine of the harness. So
it is known of every write whether, how often and with which result it was applied. A write has an
identity: its command, with the key of its session if there is one.

- A result that a client is told is the result of an entry with that very command. One entry
  answers one request, or any number of them under one idempotency key.
- Writes that were certainly not applied, and those that were, are no more than were asked for.
- Under one idempotency key a write takes effect once.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from raftkv.core.batches import decode_batch
from raftkv.core.cluster_map import GroupId
from raftkv.core.operations import Command, Done, Forget, Refused, Seal, Txn, is_read_only
from raftkv.core.shard.machine import StateMachine
from raftkv.raft.group import Group
from raftkv.raft.journal import REGULAR
from raftkv.rpc.messages import (
    BatchRequest,
    BatchResult,
    Call,
    Failure,
    Reply,
    Request,
    Response,
    WriteRequest,
)
from raftkv.sim.violation import Violation

State = tuple[int, int]
"""(digest, last revision)."""


@dataclass(slots=True)
class _Account:
    """What is known of one command."""

    asked: int = 0
    """Requests that reached a node."""
    denied: int = 0
    """Those of them that were called certainly not applied."""
    applied: Counter[Response | Done] = field(default_factory=Counter)
    """Entries, by their result."""
    told: Counter[Response] = field(default_factory=Counter)
    """Requests that were answered, by their result."""


class Ledger:
    """Keeps an account of every write; a :class:`raftkv.sim.client.Witness` of what is said.

    Args:
        complete: whether all requests are told of, so that a write nobody asked for is a violation.
    """

    def __init__(self, *, complete: bool = True) -> None:
        self.complete = complete
        self._states: dict[GroupId, StateMachine] = {}
        self._accounts: defaultdict[Command, _Account] = defaultdict(_Account)
        self._open: dict[int, Call] = {}
        self._unbacked: set[tuple[Command, Response]] = set()

    def committed(self, group: Group, command: bytes) -> State:
        """Apply the next committed entry of a group; return the state after it.

        Raises:
            Violation: it must not have been there.
        """
        state = self._states.get(group.id)
        if state is None:
            config = group.config
            state = StateMachine(group.id.generation, config.owns, config.bounds.memory)
            self._states[group.id] = state
        if command[:1] == REGULAR:
            before = state.last_revision
            batch = decode_batch(command[1:])
            for written, result in zip(batch.commands, state.apply(batch), strict=True):
                if isinstance(written.operation, Forget | Seal):
                    continue  # what leaders do by themselves
                account = self._accounts[written]
                account.applied[result] += 1
                if account.asked or self.complete:
                    _check_account(written, account)
            if state.last_revision < before:
                raise Violation(f"revisions of group {group.id} went back from {before}")
        return state.digest, state.last_revision

    def asked(self, call: Call) -> None:
        """A request reaches a node."""
        self._open[call.id] = call
        for command in _commands(call.request):
            self._accounts[command].asked += 1

    def answered(self, call: Call, reply: Reply) -> None:
        """A node answers a request.

        Raises:
            Violation: it must not.
        """
        if reply.id != call.id or self._open.pop(call.id, None) is None:
            raise Violation(f"{call.request} was answered twice or by another's answer: {reply}")
        for command, result in _answers(call.request, reply.response):
            account = self._accounts[command]
            if isinstance(result, Failure) and result.code == "internal":
                raise Violation(f"{_shown(command)} was answered with a bug: {result.detail}")
            if not isinstance(result, Failure):
                account.told[result] += 1
                self._unbacked.add((command, result))
            elif result.definite:
                account.denied += 1
                _check_account(command, account)

    def settle(self) -> None:
        """Compare every result that was told with what was applied, now that all is committed.

        Not sooner: a leader may tell what it has applied and end before anybody looks at it.

        Raises:
            Violation: there is no entry with that command and result, or not one for each request.
        """
        for command, result in self._unbacked:
            account = self._accounts[command]
            told, applied = account.told[result], account.applied[result]
            if applied == 0 or (command.idempotency is None and told > applied):
                raise Violation(
                    f"{told} requests {_shown(command)} were answered {_shown(result)}, "
                    f"which was the outcome of {applied} entries"
                )
        self._unbacked.clear()


def _check_account(command: Command, account: _Account) -> None:
    effects = {r: n for r, n in account.applied.items() if not isinstance(r, Refused)}
    applied = sum(effects.values())
    if isinstance(command.operation, Txn) and is_read_only(command.operation):
        return  # it does no harm, however often
    if command.idempotency is None:
        if account.denied + applied > account.asked:
            raise Violation(
                f"of {account.asked} requests {_shown(command)} {account.denied} were called "
                f"certainly not applied, but {applied} were"
            )
        return
    if applied and account.denied == account.asked:
        raise Violation(f"{_shown(command)} was applied, and was called certainly not applied")
    if len(effects) > 1:
        raise Violation(f"{_shown(command)} took effect more than once: {_shown([*effects])}")


def _commands(request: Request) -> list[Command]:
    if isinstance(request, WriteRequest):
        return [request.command]
    if isinstance(request, BatchRequest):
        return [operation for operation in request.operations if isinstance(operation, Command)]
    return []


def _answers(request: Request, response: Response) -> Iterator[tuple[Command, Response]]:
    """What a response says of each command of a request."""
    if isinstance(request, BatchRequest) and isinstance(response, BatchResult):
        for operation, result in zip(request.operations, response.results, strict=True):
            if isinstance(operation, Command):
                yield operation, result
        return
    for command in _commands(request):
        yield command, response


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= 200 else f"{text[:150]} ... {text[-40:]}"  # noqa: PLR2004 -- a line
