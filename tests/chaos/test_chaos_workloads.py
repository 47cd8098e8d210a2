"""The workloads on a store in memory: a right one passes, each kind of wrong one is found."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
from memory_store import MemoryStore

from raftkv.chaos.judge import Judgement, judge, report
from raftkv.chaos.load import Load, LoadProcess
from raftkv.chaos.play import asked, play
from raftkv.chaos.recorder import Recorder
from raftkv.chaos.settings import MIXED, WORKLOADS, Settings
from raftkv.chaos.store import Store
from raftkv.check.history import HistoryWriter, Operation, read_history
from raftkv.check.verdict import PartResult, Result, Verdict
from raftkv.client import DeleteResult, KeyValue, Put, PutResult, UnknownOutcomeError
from raftkv.client.types import Bytes, to_bytes
from raftkv.workloads import WORKLOADS as ALL_WORKLOADS
from raftkv.workloads import final_reads
from raftkv.workloads.keys import OPERATIONS_PER_KEY_MAX, KeyRotation, RotatingKeys
from raftkv.workloads.steps import Ask, Context, Outcome, Pause, Steps

OPERATIONS = 1500
PROCESSES = 5


def drive(
    name: str,
    store: Store,
    path: Path,
    turns: int = OPERATIONS,
    *,
    active: int | None = None,
    processes: int = PROCESSES,
) -> None:
    """Some processes take turns, step by step, then everything is read."""
    settings = Settings(path, 1, workload=name)
    keys = RotatingKeys(Random(1), active or settings.active_keys)
    with HistoryWriter(path) as history:
        recorder = Recorder(history)
        banks: dict[str, object] = {}
        actors = [LoadProcess(number, Random(number)) for number in range(processes)]
        contexts = [
            Context(recorder.process(number), keys, banks=banks) for number in range(processes)
        ]
        random = Random(3)

        def begin(number: int) -> Steps:
            workload = ALL_WORKLOADS[random.choice(settings.workloads)]
            return workload(actors[number], contexts[number])

        at_work = [begin(number) for number in range(processes)]
        waiting: list[Ask | None] = [None] * processes
        while turns:
            number = random.randrange(processes)
            ask = waiting[number]
            try:
                waiting[number] = (
                    next(at_work[number])
                    if ask is None
                    else at_work[number].send(without_pauses(ask, store))
                )
            except StopIteration:
                at_work[number], waiting[number] = begin(number), None
                turns -= 1
        reader = LoadProcess(PROCESSES, Random(0))
        context = Context(recorder.process(PROCESSES), keys)
        for _, read in final_reads(reader, context):
            play(read(), store)


def without_pauses(ask: Ask, store: Store) -> Outcome:
    """Take a step; others go on behind each in any case."""
    return Outcome("ok") if isinstance(ask, Pause) else asked(ask, store)


class Turns:
    """One process after another with one workload, and what they write down."""

    def __init__(self, history: HistoryWriter, path: Path, name: str) -> None:
        self._path = path
        self._name = name
        self._recorder = Recorder(history)
        self._keys = RotatingKeys(Random(1), 1)
        self._banks: dict[str, object] = {}
        self._processes = [LoadProcess(number, Random(2)) for number in range(2)]

    def next(self, process: int, store: Store) -> None:
        """Let a process take a turn."""
        context = Context(self._recorder.process(process), self._keys, banks=self._banks)
        play(ALL_WORKLOADS[self._name](self._processes[process], context), store)

    def done(self) -> list[Operation]:
        """What was done so far."""
        return list(read_history(self._path, "raftkv"))


def judged(name: str, store: Store, path: Path) -> Judgement:
    """What the judge says of a workload on a store."""
    file = path / "history.jsonl"
    drive(name, store, file)
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
        self.previous: dict[bytes, KeyValue] = {}

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

    def get_now(self, key: Bytes) -> KeyValue | None:
        """The truth."""
        return super().get(key)

    def get(self, key: Bytes) -> KeyValue | None:
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
        puts = [one for one in then if isinstance(one, Put)]
        torn = len(puts) == 2 and self.transactions % 20 == 0
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
    drive("set", MemoryStore(), tmp_path / "h", turns=50)
    judgement = judge(tmp_path / "h", findings=["shard 0: its replicas differ"])
    assert judgement.result.verdict is Verdict.VALID
    assert judgement.verdict is Verdict.VIOLATION
    assert judgement.reasons == ["shard 0: its replicas differ"]


def test_the_report_shows_a_finding(tmp_path: Path) -> None:
    """As what makes the run a violation, not as a fact of it."""
    drive("set", MemoryStore(), tmp_path / "h", turns=50)
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
    drive("bank", MemoryStore(), tmp_path / "h", turns=100, active=1, processes=1)
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


@pytest.fixture
def turns(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Turns]:
    """Turns with the workload that the test names."""
    with HistoryWriter(tmp_path / "h") as history:
        yield Turns(history, tmp_path / "h", request.param)


@pytest.mark.parametrize("turns", ["lock"], indirect=True)
def test_a_lock_of_unknown_outcome_is_released_before_another_is_tried(turns: Turns) -> None:
    """Or the lock would stay taken for ever."""
    turns.next(0, LosesAnswers())
    asked = [(operation.f, operation.fields["owner"]) for operation in turns.done()]
    # Its release had an unknown outcome too; the third looks again and finds that it holds nothing.
    assert [f for f, _ in asked] == ["acquire", "release", "release"]
    assert len({owner for _, owner in asked}) == 1
    assert [operation.status for operation in turns.done()] == ["info", "info", "fail"]
    turns.next(0, LosesAnswers())
    assert turns.done()[3].f == "acquire"


@pytest.mark.parametrize("turns", ["bank"], indirect=True)
def test_a_bank_whose_opening_is_unknown_is_not_used(turns: Turns) -> None:
    """Its balances might appear at any time; nor is one used that nobody has opened yet."""

    class AsksBeforeItIsOpen(LosesAnswers):
        def txn(self, compare=(), then=(), otherwise=()):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
            for _ in range(20):
                turns.next(1, MemoryStore())
            return super().txn(compare, then, otherwise)  # type: ignore[no-untyped-call]

    turns.next(0, AsksBeforeItIsOpen())
    opening, *others = turns.done()
    assert (opening.f, opening.status) == ("init", "info")
    assert others
    assert {(other.f, other.status) for other in others} == {("read", "fail")}
    turns.next(1, MemoryStore())
    again = turns.done()[-1]
    assert (again.f, again.key == opening.key) == ("init", False)


class CountsCallers(MemoryStore):
    """Remembers which client asked."""

    def __init__(self, asked: list[int], client: int) -> None:
        super().__init__()
        self._asked = asked
        self._client = client

    def get(self, key: Bytes) -> KeyValue | None:
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
            ["append"],
            RotatingKeys(Random(1), 8),
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
            ["set"],
            RotatingKeys(Random(1), 8),
            Recorder(history),
            clients=1,
            rate_per_s=100.0,
            seed=1,
        )
        with load:
            while not load.crashes:
                pass
    assert isinstance(load.crashes[0], json.JSONDecodeError)


def test_each_kind_of_operation_has_keys_of_its_own() -> None:
    """The one beside another is of its kind, and a retired one is handed out no more."""
    random = Random(5)
    keys = RotatingKeys(random, 2)
    register, lock = keys.take("register", random), keys.take("lock", random)
    assert {key.rpartition("-")[0] for key in (register, keys.beside(register))} == {"register"}
    assert register != keys.beside(register)
    keys.retire(lock)
    assert lock not in {keys.take("lock", random) for _ in range(100)}
