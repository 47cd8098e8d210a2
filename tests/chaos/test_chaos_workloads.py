"""The workloads on a store in memory: a right one passes, each kind of wrong one is found."""

import json
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from memory_store import MemoryStore

from raftkv.chaos.judge import Judgement, judge, report
from raftkv.chaos.load import Load
from raftkv.chaos.operation import perform
from raftkv.chaos.recorder import Recorder
from raftkv.chaos.store import Store
from raftkv.chaos.workloads import MIXED, WORKLOADS, Workload, make_workloads
from raftkv.chaos.workloads.bank import BankWorkload
from raftkv.chaos.workloads.keys import OPERATIONS_PER_KEY_MAX, KeyRotation
from raftkv.chaos.workloads.lock import LockWorkload
from raftkv.check.history import HistoryWriter, read_history
from raftkv.check.verdict import PartResult, Result, Verdict
from raftkv.client import DeleteResult, Entry, PutResult, UnknownOutcomeError
from raftkv.client.types import Bytes, to_bytes

OPERATIONS = 1500
PROCESSES = 5


def drive(
    workloads: list[Workload], store: Store, path: Path, operations: int = OPERATIONS
) -> None:
    """Some processes take turns, then everything is read."""
    random = Random(3)
    with HistoryWriter(path) as history:
        recorder = Recorder(history)
        for number in range(operations):
            process = number % PROCESSES
            operation = random.choice(workloads).next(process, random)
            if operation is not None:
                recorder.perform(process, operation, store)
        for workload in workloads:
            for operation in workload.final_reads():
                recorder.perform(PROCESSES, operation, store)


def judged(name: str, store: Store, path: Path) -> Judgement:
    """What the judge says of a workload on a store."""
    file = path / "history.jsonl"
    drive(make_workloads(name, Random(1)), store, file)
    return judge(file, findings=())


@pytest.mark.parametrize("name", [*WORKLOADS, MIXED])
def test_a_right_store_is_valid(name: str, tmp_path: Path) -> None:
    """And most operations have an effect, or there would be nothing to see."""
    judgement = judged(name, MemoryStore(), tmp_path)
    assert judgement.verdict is Verdict.VALID, judgement.reasons
    statuses = [operation.status for operation in judgement.operations]
    assert statuses.count("ok") > len(statuses) / 2


class LosesWrites(MemoryStore):
    """Acknowledges every fiftieth write without doing it."""

    writes = 0

    def put(
        self,
        key: Bytes,
        value: Bytes,
        *,
        if_revision: int | None = None,
        if_absent: bool = False,
    ) -> PutResult:
        """Forget it now and then."""
        self.writes += 1
        before = dict(self.entries)
        result = super().put(key, value, if_revision=if_revision, if_absent=if_absent)
        if self.writes % 50 == 0:
            self.entries = before
        return result


class ReadsStale(MemoryStore):
    """Answers some reads of a key with what it was one write ago."""

    reads = 0

    def __init__(self) -> None:
        super().__init__()
        self.previous: dict[bytes, Entry] = {}

    def put(
        self,
        key: Bytes,
        value: Bytes,
        *,
        if_revision: int | None = None,
        if_absent: bool = False,
    ) -> PutResult:
        """Keep what was there."""
        old = self.get_now(key)
        result = super().put(key, value, if_revision=if_revision, if_absent=if_absent)
        if old is not None:
            self.previous[to_bytes(key)] = old
        return result

    def get_now(self, key: Bytes) -> Entry | None:
        """The truth."""
        return super().get(key)

    def get(self, key: Bytes) -> Entry | None:
        """Not always the truth."""
        self.reads += 1
        stale = self.previous.get(to_bytes(key))
        return stale if self.reads % 20 == 0 and stale is not None else super().get(key)


class IgnoresConditions(MemoryStore):
    """Puts and deletes whatever the condition says."""

    def _check(self, key: Bytes, if_revision: int | None, *, if_absent: bool) -> None:
        """Everything is fine."""


class TearsTransactions(MemoryStore):
    """Does the first write of every twentieth transaction only."""

    transactions = 0

    def txn(self, compare=(), then=(), otherwise=()):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        """Half of it, now and then."""
        self.transactions += 1
        torn = len(then) == 2 and self.transactions % 20 == 0
        return super().txn(compare, then[:1] if torn else then, otherwise)


@pytest.mark.parametrize(
    ("name", "store"),
    [
        ("register", LosesWrites),
        ("register", ReadsStale),
        ("register", IgnoresConditions),
        ("append", LosesWrites),
        ("append", ReadsStale),
        ("set", LosesWrites),
        ("bank", TearsTransactions),
        ("lock", IgnoresConditions),
        ("mixed", LosesWrites),
    ],
)
def test_a_wrong_store_is_a_violation(
    name: str, store: Callable[[], MemoryStore], tmp_path: Path
) -> None:
    """The workload provokes what is wrong, and the judge sees it."""
    assert judged(name, store(), tmp_path).verdict is Verdict.VIOLATION


def test_a_finding_is_a_violation_though_the_history_is_right(tmp_path: Path) -> None:
    """Replicas that differ, say, which no client may have seen yet."""
    drive(make_workloads("set", Random(1)), MemoryStore(), tmp_path / "h", operations=50)
    judgement = judge(tmp_path / "h", findings=["shard 0: its replicas differ"])
    assert judgement.result.verdict is Verdict.VALID
    assert judgement.verdict is Verdict.VIOLATION
    assert judgement.reasons == ["shard 0: its replicas differ"]


def test_the_report_shows_a_finding(tmp_path: Path) -> None:
    """As what makes the run a violation, not as a fact of it."""
    drive(make_workloads("set", Random(1)), MemoryStore(), tmp_path / "h", operations=50)
    (tmp_path / "events.jsonl").touch()
    judgement = judge(tmp_path / "h", findings=["shard 0: its replicas differ"])
    page = report(judgement, tmp_path, "a run", {"seed": "1"}).read_text()
    assert "shard 0: its replicas differ" in page
    assert "finding 1" not in page


def part(key: str, verdict: Verdict) -> PartResult:
    """What was found of one key."""
    return PartResult(key, verdict, 3, 0.1, (), None, f"{verdict}, for a reason")


@pytest.mark.parametrize(
    ("verdicts", "reasons"),
    [
        ("valid unknown", ["key k1: unknown, for a reason"]),
        ("unknown violation", ["key k1: violation, for a reason"]),
        ("valid valid", []),
    ],
)
def test_keys_that_nobody_looked_at_after_a_violation_are_no_reason(
    verdicts: str, reasons: list[str]
) -> None:
    """They are undecided only because the search had ended."""
    parts = tuple(part(f"k{n}", Verdict(word)) for n, word in enumerate(verdicts.split()))
    assert Judgement(Result.of("register", parts)).reasons == reasons


def test_a_bank_tells_the_revisions_that_the_model_orders_it_by(tmp_path: Path) -> None:
    """A transfer the one that it made, a read the newest of its accounts."""
    drive([BankWorkload(Random(1), 1)], MemoryStore(), tmp_path / "h", operations=100)
    moved = 0
    for operation in read_history(tmp_path / "h", "raftkv"):
        if operation.status == "ok" and operation.f == "transfer":
            assert operation.fields["revision"] > moved
            moved = operation.fields["revision"]
        elif operation.f == "read" and moved:
            assert operation.fields["revision"] == moved
    assert moved


def test_operations_of_a_key_are_bounded() -> None:
    """A new key comes in its place, so that the checker's work does not grow with the run."""
    random = Random(5)
    keys = KeyRotation("k", 3, random)
    taken = [keys.take(random) for _ in range(5000)]
    counts = [taken.count(key) for key in set(taken)]
    assert max(counts) <= OPERATIONS_PER_KEY_MAX
    assert set(taken) <= set(keys.used)


class LosesAnswers(MemoryStore):
    """Does what it is told, and says so of no write."""

    def put(
        self,
        key: Bytes,
        value: Bytes,
        *,
        if_revision: int | None = None,
        if_absent: bool = False,
    ) -> PutResult:
        """Done, and lost."""
        super().put(key, value, if_revision=if_revision, if_absent=if_absent)
        raise UnknownOutcomeError("lost")

    def delete(self, key: Bytes, *, if_revision: int | None = None) -> DeleteResult:
        """Done, and lost."""
        super().delete(key, if_revision=if_revision)
        raise UnknownOutcomeError("lost")

    def txn(self, compare=(), then=(), otherwise=()):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        """Done, and lost."""
        super().txn(compare, then, otherwise)
        raise UnknownOutcomeError("lost")


def test_a_lock_of_unknown_outcome_is_released_before_another_is_tried() -> None:
    """Or the lock would stay taken for ever."""
    workload, random, store = LockWorkload(Random(1), 1), Random(2), LosesAnswers()
    asked = []
    for _ in range(3):
        operation = workload.next(0, random)
        asked.append((operation.f, operation.fields["owner"]))
        outcome = perform(operation, store)
    # Its release had an unknown outcome too; the third looks again and finds that it holds nothing.
    assert [f for f, _ in asked] == ["acquire", "release", "release"]
    assert len({owner for _, owner in asked}) == 1
    assert outcome.status == "fail"
    assert workload.next(0, random).f == "acquire"


def test_a_bank_whose_opening_is_unknown_is_not_used() -> None:
    """Its balances might appear at any time."""
    workload, random = BankWorkload(Random(1), 1), Random(2)
    opening = workload.next(0, random)
    assert opening is not None
    assert workload.next(1, random) is None, "nobody comes before the opening"
    perform(opening, LosesAnswers())
    again = workload.next(1, random)
    assert again is not None
    assert (again.f, again.key == opening.key) == ("init", False)


class CountsCallers(MemoryStore):
    """Remembers which client asked."""

    def __init__(self, asked: list[int], client: int) -> None:
        super().__init__()
        self._asked = asked
        self._client = client

    def get(self, key: Bytes) -> Entry | None:
        """Note who asks."""
        self._asked.append(self._client)
        return super().get(key)


def test_the_load_is_made_by_all_clients_at_once(tmp_path: Path) -> None:
    """Each is a process of the history of its own, and none breaks."""
    asked: list[int] = []
    with HistoryWriter(tmp_path / "h") as history:
        recorder = Recorder(history)
        load = Load(
            lambda client: CountsCallers(asked, client),
            make_workloads("append", Random(1)),
            recorder,
            clients=4,
            rate_per_s=4000.0,
            seed=1,
        )
        with load:
            while len(set(asked)) < 4:
                pass
    assert not load.crashes
    assert {operation.process for operation in read_history(tmp_path / "h")} >= {0, 1, 2, 3}


def test_a_client_that_breaks_is_told_of(tmp_path: Path) -> None:
    """Fewer clients than asked for would make a verdict worth less."""
    with HistoryWriter(tmp_path / "h") as history:
        load = Load(
            lambda _: json.loads("no store"),
            make_workloads("set", Random(1)),
            Recorder(history),
            clients=1,
            rate_per_s=100.0,
            seed=1,
        )
        with load:
            while not load.crashes:
                pass
    assert isinstance(load.crashes[0], json.JSONDecodeError)
