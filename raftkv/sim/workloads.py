"""What simulated clients do: the operations that the checker's models know.

Each workload is a function that does one operation of one client and records it. Keys change with
time (``era``), so that no key collects more operations than a checker can search.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from random import Random

import msgspec

from raftkv.core.operations import (
    Compare,
    Delete,
    DeleteResult,
    Entry,
    Get,
    GetResult,
    Put,
    PutResult,
    Range,
    RangeResult,
    Refused,
    Txn,
    TxnPart,
    TxnResult,
)
from raftkv.rpc.messages import BatchResult, Failure, GetRequest, ScanRequest
from raftkv.sim.client import Client, Outcome
from raftkv.sim.recorder import Open, Recorder
from raftkv.sim.staleness import Staleness
from raftkv.sim.violation import Violation

ACCOUNTS = ("a", "b", "c")
BALANCE = 100

_encode = msgspec.json.encode
_decode = msgspec.json.decode


@dataclass(slots=True)
class Scene:
    """What a workload works on."""

    recorder: Recorder
    staleness: Staleness
    era: Callable[[], int]
    banks: set[str]
    value_bytes: int = 6000
    """What large values have."""
    shards: int = 1


Workload = Callable[[Client, Scene], Awaitable[None]]


# --- register --------------------------------------------------------------------------------


async def register(client: Client, scene: Scene) -> None:
    """Read, write, compare and set or delete one of a few keys; sometimes several in a batch."""
    random = client.random
    key = f"r{scene.era()}-{random.randrange(2)}"
    actions = (_read, _write, _cas, _create, _delete, _read_stale, _batch, _write_large)
    action = random.choices(actions, (28, 22, 18, 10, 8, 10, 7, 3))[0]
    await action(client, scene, key)


async def _read(client: Client, scene: Scene, key: str) -> None:
    opened = scene.recorder.begin("register", "read", key)
    outcome = await client.read(GetRequest(key.encode()))
    _end_read(opened, outcome)


def _end_read(opened: Open, outcome: Outcome) -> None:
    if not isinstance(outcome.answer, GetResult):
        opened.not_ok(outcome)
    elif outcome.answer.entry is None:
        opened.ok(None, revision=None)
    else:
        entry = outcome.answer.entry
        opened.ok(entry.value.decode().rstrip("."), revision=entry.mod_revision)


async def _write(client: Client, scene: Scene, key: str) -> None:
    value = _value(client)
    opened = scene.recorder.begin("register", "write", key, value)
    outcome = await client.write(Put(key.encode(), _padded(value, client.random)))
    _end_write(opened, outcome, scene)


def _end_write(opened: Open, outcome: Outcome, scene: Scene) -> None:
    if isinstance(outcome.answer, PutResult):
        scene.staleness.written(opened.key, outcome.answer.revision)
        opened.ok(opened.value, revision=outcome.answer.revision)
    else:
        _end_refused(opened, outcome)


async def _cas(client: Client, scene: Scene, key: str) -> None:
    seen = await client.read(GetRequest(key.encode()))
    if not isinstance(seen.answer, GetResult):
        return
    entry = seen.answer.entry
    expected = None if entry is None else entry.mod_revision
    value = _value(client)
    asked = {"expected_revision": expected, "value": value}
    opened = scene.recorder.begin("register", "cas", key, asked)
    body = _padded(value, client.random)
    put = Put(key.encode(), body, if_revision=expected, if_absent=expected is None)
    _end_write(opened, await client.write(put), scene)


async def _create(client: Client, scene: Scene, key: str) -> None:
    """Write a key if it is absent, which it seldom is: to acknowledge that would be a lie."""
    value = _value(client)
    asked = {"expected_revision": None, "value": value}
    opened = scene.recorder.begin("register", "cas", key, asked)
    put = Put(key.encode(), _padded(value, client.random), if_absent=True)
    _end_write(opened, await client.write(put), scene)


async def _write_large(client: Client, scene: Scene, key: str) -> None:
    """Write as much as fits an entry, or more, which must be refused and leave nothing."""
    value = _value(client)
    too_large = client.random.random() < 0.3  # noqa: PLR2004 - share of those
    size = 2 * scene.value_bytes + 10_000 if too_large else scene.value_bytes
    opened = scene.recorder.begin("register", "write", key, value)
    put = Put(key.encode(), value.encode().ljust(size, b"."))
    outcome = await client.write(put, refusal="too_large")
    if too_large and outcome.status == "ok":
        raise Violation(f"a value of {size} bytes was taken")
    _end_write(opened, outcome, scene)


async def _delete(client: Client, scene: Scene, key: str) -> None:
    opened = scene.recorder.begin("register", "delete", key)
    scene.staleness.deleting(key)
    outcome = await client.write(Delete(key.encode()))
    _end_delete(opened, outcome, scene)


def _end_delete(opened: Open, outcome: Outcome, scene: Scene) -> None:
    if isinstance(outcome.answer, DeleteResult):
        scene.staleness.deleted(opened.key, outcome.answer.revision)
        opened.ok(None, deleted=outcome.answer.deleted, revision=outcome.answer.revision)
    else:
        if outcome.status == "fail":
            scene.staleness.deleted(opened.key, None)
        _end_refused(opened, outcome)


def _end_refused(opened: Open, outcome: Outcome) -> None:
    answer = outcome.answer
    if isinstance(answer, Refused) and answer.reason == "precondition":
        opened.fail(observed_revision=answer.current_revision)
    else:
        opened.not_ok(outcome)


async def _read_stale(client: Client, scene: Scene, key: str) -> None:
    """Not for the checker: a stale read promises an age, and that is checked at once."""
    max_age_ms = client.random.choice((None, 0, 100, 1000))
    oldest = scene.staleness.oldest(key, max_age_ms)
    outcome = await client.read(GetRequest(key.encode(), "stale", max_age_ms))
    if isinstance(outcome.answer, GetResult):
        entry = outcome.answer.entry
        revision = None if entry is None else entry.mod_revision
        scene.staleness.check(key, oldest, revision, max_age_ms)


async def _batch(client: Client, scene: Scene, key: str) -> None:
    """Writes and reads of both keys in one request; each is an operation by itself."""
    keys = (key, f"{key[:-1]}{1 - int(key[-1])}")
    values = [_value(client) for _ in keys]
    begin = scene.recorder.begin
    opened = [begin("register", "write", k, v) for k, v in zip(keys, values, strict=True)]
    opened += [begin("register", "read", k) for k in keys]
    puts = [Put(k.encode(), v.encode()) for k, v in zip(keys, values, strict=True)]
    outcome = await client.batch([*puts, *(GetRequest(k.encode()) for k in keys)])
    answer = outcome.answer
    for place, operation in enumerate(opened):
        single = outcome
        if isinstance(answer, BatchResult):
            single = _outcome_of(answer.results[place])
        if operation.f == "read":
            _end_read(operation, single)
        else:
            _end_write(operation, single, scene)


async def _batch_of_all_kinds(client: Client, scene: Scene, keys: Sequence[str]) -> None:
    """Puts, deletes and reads of several keys in one request, in any order."""
    begin = scene.recorder.begin
    opened: list[Open] = []
    items: list[Put | Delete | GetRequest] = []
    for key in client.random.choices(keys, k=client.random.randint(1, 6)):
        f = client.random.choice(("read", "write", "delete"))
        if f == "read":
            opened.append(begin("register", f, key))
            items.append(GetRequest(key.encode()))
        elif f == "delete":
            scene.staleness.deleting(key)
            opened.append(begin("register", f, key))
            items.append(Delete(key.encode()))
        else:
            value = _value(client)
            opened.append(begin("register", f, key, value))
            items.append(Put(key.encode(), _padded(value, client.random)))
    outcome = await client.batch(items)
    for place, operation in enumerate(opened):
        single = outcome
        if isinstance(outcome.answer, BatchResult):
            single = _outcome_of(outcome.answer.results[place])
        end = {"read": _end_read_of, "write": _end_write, "delete": _end_delete}[operation.f]
        end(operation, single, scene)


def _end_read_of(opened: Open, outcome: Outcome, _: Scene) -> None:
    _end_read(opened, outcome)


def _outcome_of(result: object) -> Outcome:
    if isinstance(result, Failure):
        detail = f"{result.code}: {result.detail}"
        return Outcome("fail" if result.definite else "info", detail=detail)
    return Outcome("fail" if isinstance(result, Refused) else "ok", result)


# --- append ----------------------------------------------------------------------------------


async def append(client: Client, scene: Scene) -> None:
    """Append to a list by compare and set, or read it."""
    key = f"l{scene.era()}"
    if client.random.random() < 0.4:  # noqa: PLR2004 - share of reads
        await _read_list(client, scene, key)
        return
    opened = scene.recorder.begin("append", "append", key, _value(client))
    seen = await client.read(GetRequest(key.encode()))
    if not isinstance(seen.answer, GetResult):
        opened.fail(error=seen.detail)
        return
    entry = seen.answer.entry
    body = _encode([*_list_in(seen.answer), opened.value])
    revision = None if entry is None else entry.mod_revision
    put = Put(key.encode(), body, if_revision=revision, if_absent=revision is None)
    outcome = await client.write(put)
    if isinstance(outcome.answer, PutResult):
        opened.ok(opened.value)
    else:
        opened.not_ok(outcome)


async def _read_list(client: Client, scene: Scene, key: str) -> None:
    opened = scene.recorder.begin("append", "read", key)
    outcome = await client.read(GetRequest(key.encode()))
    if isinstance(outcome.answer, GetResult):
        opened.ok(_list_in(outcome.answer))
    else:
        opened.not_ok(outcome)


def _list_in(answer: GetResult) -> list[str]:
    return [] if answer.entry is None else _decode(answer.entry.value, type=list[str])


# --- set -------------------------------------------------------------------------------------


async def add_to_set(client: Client, scene: Scene) -> None:
    """Add an element, a key of its own under the set's name, or read all by a scan or range.

    The name is a tag, or it is not and then the elements lie in every shard.
    """
    name = f"{{s{scene.era()}}}" if client.random.random() < 0.6 else f"s{scene.era()}/"  # noqa: PLR2004
    if client.random.random() >= 0.7:  # noqa: PLR2004 - share of adds
        await _read_set(client, scene, name)
    elif _is_tag(name) and client.random.random() < 0.3:  # noqa: PLR2004 - share of both at once
        await _add_and_read_set(client, scene, name)
    else:
        element = _value(client)
        opened = scene.recorder.begin("set", "add", name, element)
        outcome = await client.write(Put(f"{name}{element}".encode(), b""))
        if isinstance(outcome.answer, PutResult):
            opened.ok(element)
        else:
            opened.not_ok(outcome)


async def _add_and_read_set(client: Client, scene: Scene, name: str) -> None:
    """A range beside a write in one transaction, which sees that write."""
    element = _value(client)
    added = scene.recorder.begin("set", "add", name, element)
    read = scene.recorder.begin("set", "read", name)
    put = Put(f"{name}{element}".encode(), b"")
    outcome = await client.write(Txn((), (put, _all_of_set(name)), ()))
    found = _range_in(outcome)
    if found is None:
        added.not_ok(outcome)
        read.fail(error=outcome.detail)
        return
    elements = _elements(name, found)
    if element not in elements:
        raise Violation(f"a transaction added {element} to {name} and did not find it there")
    added.ok(element)
    read.ok(elements)


async def _read_set(client: Client, scene: Scene, name: str) -> None:
    """Read what is one moment's: a tag by scan or range, else a range, where that is allowed."""
    by_range = not _is_tag(name) or client.random.random() < 0.5  # noqa: PLR2004
    await (_read_set_by_range if by_range else _read_set_by_scan)(client, scene, name)


async def _read_set_by_range(client: Client, scene: Scene, name: str) -> None:
    """A transaction that only reads; one over several shards may be refused for that."""
    opened = scene.recorder.begin("set", "read", name)
    refusal = None if _is_tag(name) or scene.shards == 1 else "cross_shard"
    outcome = await client.write(Txn((), (_all_of_set(name),), ()), refusal=refusal)
    found = _range_in(outcome)
    if found is not None:
        opened.ok(_elements(name, found))
    else:
        opened.fail(error=outcome.detail)


async def _read_set_by_scan(client: Client, scene: Scene, name: str) -> None:
    """Ask every shard: linearizable if the elements lie in one, or if nobody writes."""
    opened = scene.recorder.begin("set", "read", name)
    whole = _all_of_set(name)
    request = ScanRequest(whole.start, whole.end, whole.limit, keys_only=True)
    outcome = await client.read(request)
    if isinstance(outcome.answer, RangeResult):
        opened.ok(_elements(name, outcome.answer))
    else:
        opened.fail(error=outcome.detail)


def _is_tag(name: str) -> bool:
    return name.startswith("{")


def _all_of_set(name: str) -> Range:
    end = name[:-1] + chr(ord(name[-1]) + 1)
    return Range(name.encode(), end.encode(), 10_000, keys_only=True)


def _elements(name: str, found: RangeResult) -> list[str]:
    return [entry.key[len(name) :].decode() for entry in found.entries]


def _range_in(outcome: Outcome) -> RangeResult | None:
    """The last result of a transaction, which is a range; None if it was not answered."""
    if not isinstance(outcome.answer, TxnResult):
        return None
    result = outcome.answer.results[-1]
    return result if isinstance(result, RangeResult) else None


# --- bank ------------------------------------------------------------------------------------


async def bank(client: Client, scene: Scene) -> None:
    """Move money between accounts of one tag, or read all balances."""
    name = f"b{scene.era()}"
    keys = _accounts(name)
    if name not in scene.banks:
        scene.banks.add(name)
        await _open_bank(client, scene, name, keys)
        return
    if client.random.random() < 0.4:  # noqa: PLR2004 - share of reads
        await _read_bank(client, scene, name)
        return
    await _transfer(client, scene, name, keys)


def _accounts(bank: str) -> dict[str, bytes]:
    """The key of each account."""
    return {account: f"{{{bank}}}{account}".encode() for account in ACCOUNTS}


async def _read_bank(client: Client, scene: Scene, name: str) -> None:
    opened = scene.recorder.begin("bank", "read", name)
    outcome = await client.write(Txn((), tuple(map(Get, _accounts(name).values())), ()))
    balances = _balances(outcome)
    if not balances:
        opened.fail(error=outcome.detail or "not opened yet")
    else:
        newest = max(revision for _, revision in _entries(outcome) or ())
        opened.ok(balances, revision=newest)


async def _open_bank(client: Client, scene: Scene, name: str, keys: dict[str, bytes]) -> None:
    opened = scene.recorder.begin("bank", "init", name, dict.fromkeys(ACCOUNTS, BALANCE))
    puts = tuple(Put(key, str(BALANCE).encode()) for key in keys.values())
    absent = tuple(Compare(key, "version", "=", 0) for key in keys.values())
    outcome = await client.write(Txn(absent, puts, ()))
    if isinstance(outcome.answer, TxnResult):
        opened.ok(opened.value)
    else:
        opened.not_ok(outcome)


async def _transfer(client: Client, scene: Scene, name: str, keys: dict[str, bytes]) -> None:
    source, target = client.random.sample(ACCOUNTS, 2)
    seen = await client.write(Txn((), (Get(keys[source]), Get(keys[target])), ()))
    entries = _entries(seen)
    if entries is None:
        return  # not opened yet, or not answered: nothing was tried
    amount = client.random.randrange(1, 50)
    asked = {"from": source, "to": target, "amount": amount}
    opened = scene.recorder.begin("bank", "transfer", name, asked)
    before = [int(value) for value, _ in entries]
    if before[0] < amount:
        opened.fail(error="insufficient funds")
        return
    unchanged = tuple(
        Compare(keys[account], "mod", "=", revision)
        for account, (_, revision) in zip((source, target), entries, strict=True)
    )
    puts = (
        Put(keys[source], str(before[0] - amount).encode()),
        Put(keys[target], str(before[1] + amount).encode()),
    )
    outcome = await client.write(Txn(unchanged, puts, ()))
    if isinstance(outcome.answer, TxnResult) and outcome.answer.succeeded:
        opened.ok(asked, revision=outcome.answer.revision)
    elif isinstance(outcome.answer, TxnResult):
        opened.fail(error="changed meanwhile")
    else:
        opened.not_ok(outcome)


def _entries(outcome: Outcome) -> list[tuple[bytes, int]] | None:
    """(value, revision) of every key that a transaction has read; None if one is missing."""
    if not isinstance(outcome.answer, TxnResult):
        return None
    found = [r.entry for r in outcome.answer.results if isinstance(r, GetResult)]
    entries = [(entry.value, entry.mod_revision) for entry in found if entry is not None]
    return entries if len(entries) == len(outcome.answer.results) else None


def _balances(outcome: Outcome) -> dict[str, int] | None:
    """What a read of all accounts found; nothing before the bank was opened."""
    if not isinstance(outcome.answer, TxnResult):
        return None
    entries = _entries(outcome)
    if entries is None:
        return {}
    return {account: int(value) for account, (value, _) in zip(ACCOUNTS, entries, strict=True)}


# --- lock ------------------------------------------------------------------------------------


async def lock(client: Client, scene: Scene) -> None:
    """Take a lock by creating its key, and give it back by deleting that revision."""
    key = f"k{scene.era()}"
    owner = _value(client)
    opened = scene.recorder.begin("lock", "acquire", key, owner=owner)
    outcome = await client.write(Put(key.encode(), owner.encode(), if_absent=True))
    if not isinstance(outcome.answer, PutResult):
        opened.not_ok(outcome)
        return
    opened.ok()
    released = scene.recorder.begin("lock", "release", key, owner=owner)
    delete = Delete(key.encode(), if_revision=outcome.answer.revision)
    outcome = await client.write(delete)
    if isinstance(outcome.answer, DeleteResult):
        released.ok()
    else:
        released.not_ok(outcome)


# --- pages -----------------------------------------------------------------------------------

PAGE_KEYS = 5
"""Keys of one prefix."""


async def pages(client: Client, scene: Scene) -> None:
    """Write keys of one prefix, and read them all in pages. Each key is a register.

    A page says of every key up to its last one whether there is an entry, at one moment for each
    shard. The keys share a tag, or are spread over the shards.
    """
    random = client.random
    prefix = random.choice(("{{p{}}}", "p{}-")).format(scene.era())
    keys = [f"{prefix}{number}" for number in range(PAGE_KEYS)]
    action = random.choices(("write", "delete", "batch", "read"), (35, 15, 10, 40))[0]
    if action == "write":
        await _write(client, scene, random.choice(keys))
    elif action == "delete":
        await _delete(client, scene, random.choice(keys))
    elif action == "batch":
        await _batch_of_all_kinds(client, scene, keys)
    else:
        await _read_pages(client, scene, prefix, keys)


async def _read_pages(client: Client, scene: Scene, prefix: str, keys: Sequence[str]) -> None:
    """From cursor to cursor, with a limit of entries or of bytes."""
    cursor, end = prefix.encode(), prefix.encode() + b"\xff"
    while True:
        opened = [
            scene.recorder.begin("register", "read", key) for key in keys if key.encode() >= cursor
        ]
        limit = client.random.choice((1, 2, 1000))
        request = ScanRequest(cursor, end, limit, bytes_max=client.random.choice((1, 100, 2**20)))
        outcome = await client.read(request)
        page = outcome.answer
        if not isinstance(page, RangeResult):
            for operation in opened:
                operation.fail(error=outcome.detail)
            return
        last = page.entries[-1].key if page.more else end
        _end_reads(opened, page, last)
        if not page.more:
            return
        cursor = last + b"\0"


def _end_reads(opened: Sequence[Open], found: RangeResult, last: bytes) -> None:
    """What a range says of each key up to ``last``."""
    entries = {entry.key: entry for entry in found.entries}
    for operation in opened:
        key = operation.key.encode()
        if key > last:
            operation.fail(error="not on this page")
        else:
            _end_read(operation, Outcome("ok", GetResult(entries.get(key))))


# --- txn -------------------------------------------------------------------------------------

TXN_KEYS = 4


async def txn(client: Client, scene: Scene) -> None:
    """Transactions with every kind of condition, and puts, deletes and ranges in both branches.

    Each key is a register: the condition and the put behind it are a compare and set. That all
    keys change together is what the bank is for.
    """
    random = client.random
    tagged = random.random() < 0.7  # noqa: PLR2004 - share of those
    prefix = f"{{t{scene.era()}}}" if tagged else f"t{scene.era()}-"
    # What is compared and what is put may be large; what is spread over shards is no transaction.
    refusal = "too_large" if tagged or scene.shards == 1 else "cross_shard"
    keys = [f"{prefix}{number}" for number in range(TXN_KEYS)]
    guarded, removed, otherwise_put = random.sample(keys, 3)
    seen = await client.read(GetRequest(guarded.encode()))
    if not isinstance(seen.answer, GetResult):
        return
    entry = seen.answer.entry
    begin = scene.recorder.begin
    expected = None if entry is None else entry.mod_revision
    value, other_value = _value(client), _value(client)
    cas = begin("register", "cas", guarded, {"expected_revision": expected, "value": value})
    delete = begin("register", "delete", removed)
    write = begin("register", "write", otherwise_put, other_value)
    reads = [begin("register", "read", key) for key in keys]
    scene.staleness.deleting(removed)
    query = Range(prefix.encode(), prefix.encode() + b"\xff", 1000)
    then: list[TxnPart] = [
        Put(guarded.encode(), _padded(value, random)),
        Delete(removed.encode()),
        query,
    ]
    otherwise: list[TxnPart] = [Put(otherwise_put.encode(), other_value.encode()), query]
    random.shuffle(then)
    random.shuffle(otherwise)
    asked = Txn(_unchanged(random, guarded.encode(), entry), tuple(then), tuple(otherwise))
    outcome = await client.write(asked, refusal=refusal)
    answer = outcome.answer
    if not isinstance(answer, TxnResult):
        _end_write(cas, outcome, scene)
        _end_delete(delete, outcome, scene)
        _end_write(write, outcome, scene)
        for read in reads:
            read.fail(error=outcome.detail)
        return
    not_done = Outcome("fail", detail="the other branch was taken")
    ends = {type(result): Outcome("ok", result) for result in answer.results}
    done = ends.get(PutResult, not_done)
    _end_write(cas, done if answer.succeeded else not_done, scene)
    _end_write(write, not_done if answer.succeeded else done, scene)
    _end_delete(delete, ends.get(DeleteResult, not_done), scene)
    _end_reads(reads, ends[RangeResult].answer, query.start + b"\xff")


def _unchanged(random: Random, key: bytes, entry: Entry | None) -> tuple[Compare, ...]:
    """One of the ways to say that nothing has happened to a key."""
    if entry is None:
        return random.choice((
            (Compare(key, "create", "=", 0),),
            (Compare(key, "version", "<", 1),),
            (Compare(key, "version", "=", 0), Compare(key, "mod", "=", 0)),
        ))  # fmt: skip
    mod = entry.mod_revision
    return random.choice((
        (Compare(key, "mod", "=", mod),),
        (Compare(key, "mod", ">", mod - 1), Compare(key, "mod", "<", mod + 1)),
        (Compare(key, "value", "=", entry.value),),
        (
            Compare(key, "create", "=", entry.create_revision),
            Compare(key, "version", "=", entry.version),
            Compare(key, "value", "!=", b""),
        ),
    ))  # fmt: skip


WORKLOADS: dict[str, Workload] = {
    "register": register,
    "append": append,
    "set": add_to_set,
    "bank": bank,
    "lock": lock,
    "pages": pages,
    "txn": txn,
}


_READS = {"register": _read, "append": _read_list, "set": _read_set_by_scan, "bank": _read_bank}


async def read_all(client: Client, scene: Scene) -> None:
    """Read everything that was ever written: nothing acknowledged may have gone unseen."""
    for model, read in _READS.items():
        for key in dict.fromkeys(event.key for event in scene.recorder.events.get(model, ())):
            if key is not None:
                await read(client, scene, key)


def _value(client: Client) -> str:
    """A value that nobody else writes."""
    client.written += 1
    return f"{client.number}-{client.written}"


def _padded(value: str, random: Random) -> bytes:
    """Mostly small, sometimes larger than a disk's sector, a link's buffer or a log's unit."""
    return (value + "." * random.choice((0, 0, 0, 0, 600, 6000))).encode()
