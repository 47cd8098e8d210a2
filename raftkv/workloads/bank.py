"""Accounts of one shard between which transactions move money: it must never be made or lost."""

from raftkv.client.types import Compare, Get, KeyValue, Put, TxnResult
from raftkv.workloads.steps import Context, Outcome, Process, Steps, Txn, Write

MODEL = "bank"
ACCOUNTS = ("a", "b", "c")
BALANCE = 100


def bank(process: Process, context: Context) -> Steps:
    """Move money between accounts of one tag, or read all balances; open a bank that is new."""
    name = context.keys.take("bank", process.random)
    mine = object()
    if context.banks.setdefault(name, mine) is mine:  # in one step, as threads may share it
        yield from _open(context, name)
    elif process.random.random() < 0.4:  # noqa: PLR2004 -- share of reads
        yield from read(process, context, name)
    else:
        yield from _transfer(process, context, name)


def _accounts(name: str) -> dict[str, str]:
    """The key of each account."""
    return {account: f"{{{name}}}{account}" for account in ACCOUNTS}


def read(_: Process, context: Context, name: str) -> Steps:
    """Read all balances in one transaction."""
    opened = context.recorder.begin(MODEL, "read", name)
    outcome = yield Write(Txn((), tuple(map(Get, _accounts(name).values()))))
    entries = _entries(outcome)
    if entries is None:
        opened.fail(error=outcome.detail or "not opened yet")
        return
    balances = {account: int(entry.value) for account, entry in zip(ACCOUNTS, entries, strict=True)}
    opened.ok(balances, revision=max(entry.revision for entry in entries))


def _open(context: Context, name: str) -> Steps:
    opened = context.recorder.begin(MODEL, "init", name, dict.fromkeys(ACCOUNTS, BALANCE))
    keys = _accounts(name).values()
    puts = tuple(Put(key, str(BALANCE)) for key in keys)
    absent = tuple(Compare(key, "version", "=", 0) for key in keys)
    outcome = yield Write(Txn(absent, puts))
    if outcome.is_ok:
        opened.ok(opened.value)
    else:
        context.keys.retire(name)
        opened.not_ok(outcome)


def _transfer(process: Process, context: Context, name: str) -> Steps:
    keys = _accounts(name)
    source, target = process.random.sample(ACCOUNTS, 2)
    seen = yield Write(Txn((), (Get(keys[source]), Get(keys[target]))))
    entries = _entries(seen)
    if entries is None:
        return  # not opened yet, or not answered: nothing was tried
    amount = process.random.randrange(1, 50)
    asked = {"from": source, "to": target, "amount": amount}
    opened = context.recorder.begin(MODEL, "transfer", name, asked)
    before = [int(entry.value) for entry in entries]
    if before[0] < amount:
        opened.refused("insufficient funds")
        return
    unchanged = tuple(
        Compare(keys[account], "mod", "=", entry.revision)
        for account, entry in zip((source, target), entries, strict=True)
    )
    puts = (
        Put(keys[source], str(before[0] - amount)),
        Put(keys[target], str(before[1] + amount)),
    )
    outcome = yield Write(Txn(unchanged, puts))
    answer = outcome.answer
    if not isinstance(answer, TxnResult):
        opened.not_ok(outcome)
    elif answer.succeeded:
        opened.ok(asked, revision=answer.revision)
    else:
        opened.refused("changed meanwhile")


def _entries(outcome: Outcome) -> list[KeyValue] | None:
    """Every key that a transaction has read; None if one is missing, or it was not answered."""
    if not isinstance(outcome.answer, TxnResult):
        return None
    results = outcome.answer.results
    entries = [result for result in results if isinstance(result, KeyValue)]
    return entries if len(entries) == len(results) else None
