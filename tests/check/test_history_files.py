"""History files: what is written can be read, and what cannot be read is said in one line."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftkv.check.event import from_line, to_line
from raftkv.check.history import (
    Event,
    Format,
    HistoryError,
    HistoryWriter,
    guess_format,
    pair,
    read_history,
)

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def event(process: int, kind: str, time_ns: int, value: Any = None, **fields: Any) -> Event:
    """An event of a read of key k."""
    return Event(process, kind, "read", "k", value, time_ns, fields)


def read(tmp_path: Path, text: str, format_name: Format = "raftkv") -> Any:
    """Read a file of this text."""
    path = tmp_path / "history"
    path.write_text(text, encoding="utf-8")
    return read_history(path, format_name)


@settings(derandomize=True, deadline=None)
@given(value=json_values, key=st.none() | st.text(), extra=json_values)
def test_an_event_survives_its_line(value: Any, key: str | None, extra: Any) -> None:
    """Whatever JSON can say, on exactly one line."""
    written = Event(3, "ok", "read", key, value, 17, {"node": extra})
    line = to_line(written)
    assert line.count("\n") == 1
    assert from_line(line) == written


def test_a_value_that_is_no_json_is_refused() -> None:
    """Better than a file that other tools cannot read."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_line(event(0, "ok", 1, value=float("nan")))


def test_threads_write_whole_lines(tmp_path: Path) -> None:
    """Nothing mixes, nothing is lost, and every line is in the file before the call returns."""
    path = tmp_path / "history.jsonl"
    with HistoryWriter(path) as writer:

        def write(process: int) -> None:
            for number in range(200):
                kind = ("invoke", "ok")[number % 2]
                writer.write(event(process, kind, number, value="x" * 300))

        threads = [threading.Thread(target=write, args=(process,)) for process in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(read_history(path)) == 400


def test_operations_are_paired_by_process() -> None:
    """Ordered by their begin; members of both events are merged, the end wins."""
    first, second = pair(
        [
            event(0, "invoke", 1, node="a", attempt=1),
            event(1, "invoke", 2),
            event(1, "info", 3, error="timed out"),
            event(0, "ok", 4, value="x", node="b"),
        ]
    )
    assert (first.status, first.result, first.invoked_ns, first.completed_ns) == ("ok", "x", 1, 4)
    assert first.fields == {"node": "b", "attempt": 1}
    assert (second.status, second.result, second.completed_ns) == ("info", None, None)
    assert second.fields == {"error": "timed out"}
    assert (first.index, second.index) == (0, 1)


def test_an_operation_without_an_end_is_of_unknown_outcome() -> None:
    """As if the client had been killed."""
    (operation,) = pair([event(0, "invoke", 1)])
    assert (operation.status, operation.completed_ns) == ("info", None)


def test_time_orders_events_and_the_file_those_of_one_time() -> None:
    """Threads may write late; a coarse clock does not make an end fall behind the next begin."""
    late, early = pair(
        [
            event(0, "invoke", 5),
            event(1, "invoke", 1),
            event(1, "ok", 5),
            event(0, "ok", 9),
        ]
    )[::-1]
    assert (early.process, late.process) == (1, 0)
    assert (late.invoked_at, early.completed_at) == (1, 3)
    assert [op.completed_ns for op in pair([event(0, "invoke", 1), event(0, "ok", 1)])] == [1]


@pytest.mark.parametrize(
    ("events", "complaint"),
    [
        (
            [event(0, "invoke", 1), event(0, "invoke", 2)],
            "event 2: process 0 begins read while its read is open",
        ),
        ([event(4, "ok", 1)], "event 1: process 4 ends read, and has begun nothing"),
        (
            [event(0, "invoke", 1), Event(0, "ok", "write", "k", None, 2)],
            "event 2: process 0 ends write of key 'k', and has begun read of key 'k'",
        ),
        (
            [event(0, "invoke", 1), Event(0, "ok", "read", "other", None, 2)],
            "event 2: process 0 ends read of key 'other', and has begun read of key 'k'",
        ),
    ],
)
def test_events_that_do_not_fit_are_refused(events: list[Event], complaint: str) -> None:
    """The error says which one and why."""
    with pytest.raises(HistoryError) as caught:
        pair(events)
    assert str(caught.value) == complaint


GOOD = {"process": 0, "type": "invoke", "f": "read", "key": "k", "value": None, "time_ns": 1}


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "not JSON, or cut short"),
        ("[1]", "not a JSON object"),
        ('{"process": NaN}', "NaN is no number of JSON"),
        (json.dumps({**GOOD, "process": True}), '"process" must be an integer, not True'),
        (json.dumps({**GOOD, "type": "done"}), '"type" must be one of invoke, ok, fail, info'),
        (json.dumps({**GOOD, "f": 7}), '"f" must be text, not 7'),
        (json.dumps({**GOOD, "key": 7}), '"key" must be text or null, not 7'),
        (json.dumps({**GOOD, "time_ns": 1.5}), '"time_ns" must be an integer, not 1.5'),
        (json.dumps({"process": 0, "type": "invoke"}), 'the member "f" is missing'),
        ("[" * 100_000, "not JSON, or cut short"),
    ],
)
def test_a_line_that_is_no_event_is_named(tmp_path: Path, line: str, complaint: str) -> None:
    """By file and number, with what is wrong."""
    with pytest.raises(HistoryError) as caught:
        read(tmp_path, f"{json.dumps(GOOD)}\n\n{line}\n")
    assert str(caught.value).startswith(f"{tmp_path}/history: line 3: ")
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    """As any other line that is no event."""
    path = tmp_path / "history"
    path.write_bytes(b'{"process": \xff}\n')
    with pytest.raises(HistoryError, match=r"line 1: .*utf-8"):
        read_history(path)


def test_a_log_of_jepsen_is_read(tmp_path: Path) -> None:
    """One register; nil, pairs and time-outs; what is not about clients is left out."""
    log = (
        "INFO  jepsen.core - Worker 1 starting\n"
        "INFO  jepsen.util - :nemesis\t:info\t:start\tnil\n"
        "INFO  jepsen.util - 0\t:invoke\t:cas\t[3 nil]\n"
        "INFO  jepsen.util - 1\t:invoke\t:read\tnil\n"
        "INFO  jepsen.util - 0\t:fail\t:cas\t:timed-out\n"
        "INFO  jepsen.util - 1\t:ok\t:read\t-4\n"
    )
    cas, seen = read(tmp_path, log, "jepsen-etcd")
    assert (cas.f, cas.value, cas.key, cas.status) == ("cas", [3, None], None, "info")
    assert (seen.status, seen.result, seen.invoked_ns, seen.completed_ns) == ("ok", -4, 4, 6)


def test_maps_of_edn_are_read(tmp_path: Path) -> None:
    """Members in any order, text with escapes."""
    edn = (
        '{:process 0, :type :invoke, :f :put, :key "a\\"b", :value "x\\ty"}\n'
        '{:type :ok :process 0 :f :put :key "a\\"b" :value "x\\ty", :node "n1"}\n'
    )
    (put,) = read(tmp_path, edn, "kv")
    assert (put.f, put.key, put.value, put.status) == ("put", 'a"b', "x\ty", "ok")
    assert put.fields == {"node": "n1"}


@pytest.mark.parametrize(
    ("format_name", "line", "complaint"),
    [
        ("jepsen-etcd", "hello", "not a line of a Jepsen log"),
        ("jepsen-etcd", "INFO  jepsen.util - 0\t:invoke\t:read\t{}", "cannot read the value {}"),
        ("jepsen-etcd", "INFO  jepsen.util - 0\t:begin\t:read\tnil", '"type" must be one of'),
        ("kv", "hello", "not a map in EDN"),
        ("kv", "{:process 0, :type :invoke, :f :get}", "the member :key is missing"),
        ("kv", '{:process :a, :type :invoke, :f :get, :key "k"}', '"process" must be an integer'),
        ("kv", '{:process 0, :type :invoke, :f :get, :key "\\q"}', "cannot read"),
    ],
)
def test_a_foreign_line_that_is_no_event_is_named(
    tmp_path: Path, format_name: Format, line: str, complaint: str
) -> None:
    """Formats of others are read as strictly as our own."""
    with pytest.raises(HistoryError, match="line 1: ") as caught:
        read(tmp_path, line, format_name)
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    ("text", "format_name"),
    [
        ('\n{"process": 0}\n', "raftkv"),
        ("{:process 0}\n", "kv"),
        ("INFO  jepsen.util - 0\t:invoke\t:read\tnil\n", "jepsen-etcd"),
        ("", "raftkv"),
        ("anything", "raftkv"),
    ],
)
def test_the_format_is_guessed_from_the_first_line(
    tmp_path: Path, text: str, format_name: Format
) -> None:
    """What looks like none is taken for our own, whose errors say most."""
    path = tmp_path / "history"
    path.write_text(text, encoding="utf-8")
    assert guess_format(path) == format_name
