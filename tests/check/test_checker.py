"""What the judge says besides yes and no: how far it came, why it stopped, what it cannot read."""

from typing import Any

import pytest

from raftkv.check import checker
from raftkv.check.checker import check, check_mixed
from raftkv.check.history import Event, HistoryError, Operation, pair
from raftkv.check.models import MODELS
from raftkv.check.verdict import Result, Verdict


class Client:
    """Writes a history, one operation after the other; every event is a nanosecond later."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._begun: list[Event] = []

    def begin(self, f: str, value: Any = None, key: str = "k", **fields: Any) -> int:
        """Begin an operation of a new process."""
        process = len(self._begun) + 1
        self._begun.append(Event(process, "invoke", f, key, value, len(self.events), fields))
        self.events.append(self._begun[-1])
        return process

    def end(self, process: int, kind: str = "ok", value: Any = None, **fields: Any) -> None:
        """End it."""
        f, key = self._begun[process - 1].f, self._begun[process - 1].key
        self.events.append(Event(process, kind, f, key, value, len(self.events), fields))

    def do(
        self, f: str, value: Any = None, answer: Any = None, key: str = "k", **fields: Any
    ) -> None:
        """Begin and end an operation; the members are those of its end."""
        self.end(self.begin(f, value, key), "ok", answer, **fields)

    def operations(self) -> list[Operation]:
        """All of them."""
        return pair(self.events)


def hard_bank(client: Client, key: str = "hard") -> None:
    """Many transfers at once, and then balances that no choice of them leads to."""
    accounts = dict.fromkeys("ab", 2**24)
    client.do("init", accounts, accounts, key)
    for number in range(24):
        client.begin("transfer", {"from": "a", "to": "b", "amount": 2 * 3**number % 100_003}, key)
    client.do("read", None, {"a": 2**24 - 1, "b": 2**24 + 1}, key)


def test_a_stale_read_is_named_with_what_the_key_held() -> None:
    """The longest order ends with the newer write; the read after it has no place."""
    client = Client()
    client.do("write", "old", revision=5)
    client.do("write", "new", revision=7)
    client.do("read", None, "old", revision=5)
    (part,) = check(client.operations(), MODELS["register"]).parts
    assert part.verdict is Verdict.VIOLATION
    assert part.linearization == (0, 1)
    assert part.offending == 2
    assert part.reason == (
        'nothing explains [process 3, read: ok "old", revision 5]; there is an order of 2 '
        'operations until it ended, and with it the key holds "new" at revision 7'
    )


def test_an_unknown_write_may_take_effect_long_after_its_client_gave_up() -> None:
    """Or never; but what was seen cannot become undone."""
    client = Client()
    client.end(client.begin("write", "late"), "info")
    client.do("read", None, None, revision=None)
    client.do("write", "x", revision=3)
    client.do("read", None, "late", revision=8)
    assert check(client.operations(), MODELS["register"]).verdict is Verdict.VALID
    client.do("read", None, "x", revision=3)
    assert check(client.operations(), MODELS["register"]).parts[0].offending == 4


def test_a_refusal_is_an_observation() -> None:
    """It tells the revision that there was: neither the expected one nor an old one."""
    client = Client()
    client.do("write", "a", revision=1)
    client.do("write", "b", revision=2)
    cas = client.begin("cas", {"expected_revision": 1, "value": "c"})
    client.end(cas, "fail", observed_revision=2)
    assert check(client.operations(), MODELS["register"]).verdict is Verdict.VALID
    for observed in (1, 3, None):
        told = [*client.events[:-1]]
        told.append(Event(cas, "fail", "cas", "k", None, 99, {"observed_revision": observed}))
        assert check(pair(told), MODELS["register"]).verdict is Verdict.VIOLATION


def test_a_refusal_that_tells_nothing_is_not_judged() -> None:
    """It may have been refused for any reason."""
    client = Client()
    client.do("write", "a", revision=1)
    client.end(client.begin("cas", {"expected_revision": 1, "value": "c"}), "fail")
    assert check(client.operations(), MODELS["register"]).verdict is Verdict.VALID


def test_values_are_compared_as_json() -> None:
    """One, one point nought and true are three values; the order of members is none."""
    for wrote, read, same in ((1, True, False), (1, 1.0, False), ({"a": 1, "b": 2}, None, True)):
        client = Client()
        client.do("write", wrote, revision=1)
        client.do("read", None, {"b": 2, "a": 1} if same else read, revision=1)
        verdict = check(client.operations(), MODELS["register"]).verdict
        assert (verdict is Verdict.VALID) == same


def test_events_of_one_time_are_ordered_by_their_place() -> None:
    """A coarse clock, as simulated ones are, hides no violation."""
    events = [
        Event(0, "invoke", "write", "k", "x", 5),
        Event(0, "ok", "write", "k", None, 5, {"revision": 1}),
        Event(1, "invoke", "read", "k", None, 5),
        Event(1, "ok", "read", "k", None, 5, {"revision": None}),
    ]
    assert check(pair(events), MODELS["register"]).verdict is Verdict.VIOLATION
    overlapping = [events[0], events[2], events[1], events[3]]
    assert check(pair(overlapping), MODELS["register"]).verdict is Verdict.VALID


def test_stale_reads_are_not_judged() -> None:
    """They promise nothing of the kind."""
    client = Client()
    client.do("write", "new", revision=7)
    client.do("stale_read", None, "old", revision=5)
    assert check(client.operations(), MODELS["register"]).verdict is Verdict.VALID


def test_running_out_of_time_is_unknown_and_no_pass() -> None:
    """The reason says so, and what was found so far is told."""
    client = Client()
    hard_bank(client)
    (part,) = check(client.operations(), MODELS["bank"], budget_s=0.1).parts
    assert part.verdict is Verdict.UNKNOWN
    assert part.reason == "not decided: 0.1 s were not enough"
    assert part.offending is None
    assert 0 in part.linearization


def test_running_out_of_room_is_unknown_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search does not eat the memory of the machine."""
    monkeypatch.setattr(checker, "CONFIGURATIONS_MAX", 1000)
    client = Client()
    hard_bank(client)
    (part,) = check(client.operations(), MODELS["bank"]).parts
    assert part.verdict is Verdict.UNKNOWN
    assert "1,000 states" in part.reason


def test_a_hard_key_hides_no_violation_of_another() -> None:
    """Keys take turns, and the search stops at the violation."""
    client = Client()
    hard_bank(client)
    client.do("init", {"a": 1}, {"a": 1}, "easy")
    client.do("read", None, {"a": 2}, "easy")
    result = check(client.operations(), MODELS["bank"], budget_s=30)
    hard, easy = result.parts
    assert (result.verdict, easy.verdict) == (Verdict.VIOLATION, Verdict.VIOLATION)
    assert hard.verdict is Verdict.UNKNOWN
    assert hard.reason == 'not decided: the search stopped at the violation of key "easy"'


def test_every_key_is_judged_by_itself() -> None:
    """What happens to one says nothing of another; all operations are counted."""
    client = Client()
    for key in "xyz":
        client.do("write", key, None, key, revision=1)
        client.do("read", None, key, key, revision=1)
    result = check(client.operations(), MODELS["register"])
    assert [part.key for part in result.parts] == ["x", "y", "z"]
    assert (result.verdict, result.operations) == (Verdict.VALID, 6)
    assert all(part.operations == 2 for part in result.parts)


def test_nothing_is_valid() -> None:
    """Whoever takes no operation for a pass has to look at their number."""
    result = check([], MODELS["register"])
    assert (result.verdict, result.operations, result.parts) == (Verdict.VALID, 0, ())


def test_operations_may_name_their_model() -> None:
    """A mixed history is judged in parts, each by its model."""
    client = Client()
    client.end(client.begin("add", 1, "s", model="set"))
    client.end(client.begin("read", None, "s", model="set"), value=[1])
    client.end(client.begin("write", "x", "r"))
    result = check_mixed(client.operations(), MODELS["register"])
    assert (result.verdict, result.model) == (Verdict.VALID, "set, register")
    client.end(client.begin("read", None, "s", model="set"), value=[])
    assert check_mixed(client.operations(), MODELS["register"]).verdict is Verdict.VIOLATION
    client.end(client.begin("read", None, "q", model="queue"))
    with pytest.raises(HistoryError, match='no model "queue", only register, set'):
        check_mixed(client.operations(), MODELS["register"])


@pytest.mark.parametrize(
    ("model", "f", "value", "answer", "complaint"),
    [
        ("register", "add", 1, None, "the model register has only read, write, cas, delete"),
        ("register", "cas", 1, None, 'its value must be an object with "expected_revision"'),
        ("register", "cas", {"expected_revision": 1}, None, 'must be an object with "value"'),
        ("register", "delete", {"expected_revision": "1"}, None, "null or an integer from 0"),
        ("set", "read", None, {"a": 1}, "it must have read a list or null"),
        ("append", "add", 1, None, "the model append has only read, append"),
        ("bank", "read", None, {}, "an init operation must tell the balances"),
        ("lock", "grab", None, None, "the model lock has only acquire, release"),
        ("cas-register", "cas", 1, None, "a list of the old value and the new"),
        ("kv", "put", 1, None, "its value must be text"),
    ],
)
def test_an_operation_that_its_model_cannot_read_is_named(
    model: str, f: str, value: Any, answer: Any, complaint: str
) -> None:
    """The error says which operation, and what it must be like."""
    client = Client()
    client.do(f, value, answer)
    with pytest.raises(HistoryError, match=r"operation 0 \(process 1, ") as caught:
        check(client.operations(), MODELS[model])
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_transfer_between_unknown_accounts_is_refused() -> None:
    """A history that is not of this bank is not a violation of it."""
    client = Client()
    client.do("init", {"a": 1})
    client.begin("transfer", {"from": "a", "to": "z", "amount": 1})
    with pytest.raises(HistoryError, match="no init operation names these accounts"):
        check(client.operations(), MODELS["bank"])


def test_no_set_holds_an_element_twice() -> None:
    """An answer that does is wrong, though each of its elements was added."""
    client = Client()
    client.do("add", 1)
    client.do("add", 2)
    client.do("read", None, [2, 1])
    assert check(client.operations(), MODELS["set"]).verdict is Verdict.VALID
    client.do("read", None, [2, 1, 2])
    assert check(client.operations(), MODELS["set"]).parts[0].offending == 3


def test_accounts_that_are_not_there_yet_have_no_balance() -> None:
    """A bank is opened at once: all accounts are there, or none."""
    client = Client()
    opening = client.begin("init", {"a": 1, "b": 0})
    client.do("read", None, {"a": None, "b": None})
    client.do("read", None, None)
    client.end(opening)
    client.do("read", None, {"a": 1, "b": 0})
    assert check(client.operations(), MODELS["bank"]).verdict is Verdict.VALID
    client.do("read", None, {"a": 1, "b": None})
    assert check(client.operations(), MODELS["bank"]).verdict is Verdict.VIOLATION


def test_a_long_history_of_one_key_takes_time_in_proportion() -> None:
    """Ten thousand operations leave no trace of the square of their number."""
    client = Client()
    for number in range(1, 5001):
        client.do("write", f"v{number}", revision=number)
        client.do("read", None, f"v{number}", revision=number)
    (part,) = check(client.operations(), MODELS["register"], budget_s=30).parts
    assert part.verdict is Verdict.VALID
    assert part.linearization == tuple(range(10_000))


def bank_of(*answers: tuple[str, Any, int | None]) -> Result:
    """The verdict on a bank whose one client was told these answers, one after the other."""
    client = Client()
    client.do("init", {"a": 9, "b": 0})
    for f, value, revision in answers:
        asked, answer = (None, value) if f == "read" else (value, None)
        client.do(f, asked, answer, revision=revision)
    return check(client.operations(), MODELS["bank"])


ONE = {"from": "a", "to": "b", "amount": 1}


@pytest.mark.parametrize(
    "answers",
    [
        [("transfer", ONE, 5), ("transfer", ONE, 5)],
        [("transfer", ONE, 5), ("read", {"a": 8, "b": 1}, 6)],
        [("transfer", ONE, 5), ("transfer", ONE, None), ("read", {"a": 7, "b": 2}, 5)],
        [("read", {"a": 9, "b": 0}, 3), ("read", {"a": 9, "b": 0}, 4)],
    ],
    ids=["made twice", "made by nothing", "not increased", "changed by nothing"],
)
def test_revisions_of_a_bank_strictly_increase(answers: list[tuple[str, Any, int | None]]) -> None:
    """Each transfer makes a newer one, and a read tells the newest that there is."""
    assert bank_of(*answers).verdict is Verdict.VIOLATION


def test_revisions_of_a_bank_need_not_be_told() -> None:
    """What is left out is not checked, and may be any that fits."""
    seen = ("read", {"a": 7, "b": 2}, 8)
    assert bank_of(("transfer", ONE, 5), ("transfer", ONE, None), seen, seen).verdict is (
        Verdict.VALID
    )
