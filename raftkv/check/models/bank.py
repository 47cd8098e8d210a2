"""A bank: transfers between accounts that must not be overdrawn, and reads of all balances."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from raftkv.check.event import INFO
from raftkv.check.history import Operation
from raftkv.check.model import (
    Action,
    Model,
    Move,
    Never,
    Problem,
    Rank,
    accepts_not,
    malformed,
    shown,
    unheard_of,
    unjudged,
)

_Balances = tuple[int, ...]
"""By account; empty before the accounts are opened."""


@dataclass(frozen=True, slots=True)
class _Init:
    balances: _Balances
    pure: ClassVar[bool] = False

    def apply(self, _state: _Balances) -> _Balances:
        return self.balances


@dataclass(frozen=True, slots=True)
class _Transfer:
    source: int
    target: int
    amount: int
    pure: ClassVar[bool] = False

    def apply(self, state: _Balances) -> _Balances | None:
        if not state or state[self.source] < self.amount:
            return None
        balances = list(state)
        balances[self.source] -= self.amount
        balances[self.target] += self.amount
        return tuple(balances)


@dataclass(frozen=True, slots=True)
class _Read:
    balances: _Balances
    pure: ClassVar[bool] = True

    def apply(self, state: _Balances) -> _Balances | None:
        return state if state == self.balances else None


class Bank(Model):
    """init, transfer, read; see docs/histories.md for their members."""

    name = "bank"

    def problem(self, operations: Sequence[Operation]) -> Problem:
        """Rank by revision where the answers tell it; otherwise be guided by the balances read."""
        judged = [op for op in operations if not unjudged(op, harmless=("read",))]
        accounts = _accounts(judged)
        moves = [self._move(operation, accounts) for operation in judged]

        def show(state: _Balances) -> str:
            return f"holds {shown(dict(zip(accounts, state, strict=False)))}"

        return Problem((), moves, show, _distance)

    def _move(self, operation: Operation, accounts: dict[str, int]) -> Move:
        action = self._action(operation, accounts)
        return Move(operation, action, operation.status != INFO, _rank(operation))

    def _action(self, operation: Operation, accounts: dict[str, int]) -> Action:
        match operation.f:
            case "init":
                balances = _checked(operation, operation.value)
                return _Init(tuple(balances.get(account, 0) for account in accounts))
            case "transfer":
                return _transfer(operation, accounts)
            case "read":
                return _read(operation, accounts)
        raise unheard_of(operation, self, ("init", "transfer", "read"))


def _accounts(operations: Sequence[Operation]) -> dict[str, int]:
    """Return where each account stands in a state."""
    names: set[str] = set()
    for operation in operations:
        if operation.f == "init":
            names.update(_checked(operation, operation.value))
    if not names and operations:
        raise malformed(operations[0], "an init operation must tell the balances of this bank")
    return {name: number for number, name in enumerate(sorted(names))}


def _transfer(operation: Operation, accounts: dict[str, int]) -> _Transfer:
    match operation.value:
        case {"from": str(source), "to": str(target), "amount": int(amount)} if amount >= 0:
            if source in accounts and target in accounts:
                return _Transfer(accounts[source], accounts[target], amount)
            raise malformed(operation, "no init operation names these accounts")
    raise malformed(operation, 'its value must have "from", "to" and an "amount" from 0')


def _read(operation: Operation, accounts: dict[str, int]) -> _Read | Never:
    found = operation.result or {}
    if isinstance(found, dict):
        # An account that is not there has no balance.
        found = {account: amount for account, amount in found.items() if amount is not None}
    balances = _checked(operation, found)
    if not balances:
        return _Read(())
    if balances.keys() != accounts.keys():
        return Never()
    return _Read(tuple(balances[account] for account in accounts))


def _checked(operation: Operation, balances: Any) -> dict[str, int]:
    if isinstance(balances, dict) and all(type(amount) is int for amount in balances.values()):
        return balances
    raise malformed(operation, f"balances must be an object of integers, not {shown(balances)}")


def _rank(operation: Operation) -> Rank | None:
    """A transfer makes the revision that it tells; a read tells the newest of the accounts."""
    revision = operation.fields.get("revision")
    if operation.status == INFO or type(revision) is not int:
        return None
    return revision, int(operation.f == "read")


def _distance(state: _Balances, action: Action) -> int:
    """Return how much money is elsewhere than a read found it."""
    if not isinstance(action, _Read) or len(state) != len(action.balances):
        return accepts_not(state, action)
    return sum(abs(held - read) for held, read in zip(state, action.balances, strict=True))
