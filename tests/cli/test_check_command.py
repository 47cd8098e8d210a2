"""``raftkv check``: exit codes for scripts, a table and the story of a violation for people."""

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from raftkv.check.history import Event, HistoryWriter
from raftkv.cli.check import check_command

RECORDED = Path(__file__).parents[1] / "check" / "histories"


def run(*arguments: str | Path) -> Result:
    """Run the command."""
    return CliRunner().invoke(check_command, [str(argument) for argument in arguments])


def history(path: Path, *ends: tuple[str, object, int]) -> Path:
    """Write a history of one client: ``(f, value or answer, revision)``."""
    with HistoryWriter(path) as writer:
        for number, (f, value, revision) in enumerate(ends):
            asked = value if f == "write" else None
            writer.write(Event(0, "invoke", f, "color", asked, 2_000_000 * number))
            members = {"revision": revision}
            writer.write(Event(0, "ok", f, "color", value, 2_000_000 * number + 500_000, members))
    return path


STALE: Sequence[tuple[str, object, int]] = (
    ("write", "red", 1),
    ("write", "blue", 2),
    ("read", "red", 1),
)


UNKNOWN = {"process": 0, "type": "info", "f": "read", "key": "k", "value": None, "time_ns": 1}


def test_a_linearizable_history_ends_with_code_0(tmp_path: Path) -> None:
    """The last line is the verdict, and of what."""
    result = run(history(tmp_path / "history.jsonl", *STALE[:2], ("read", "blue", 2)))
    assert result.exit_code == 0
    assert "valid: 3 operations, 1 key, model register" in result.stdout


def test_a_violation_ends_with_code_1_and_is_told(tmp_path: Path) -> None:
    """What was found, what it contradicts, and the operations before it."""
    result = run(history(tmp_path / "history.jsonl", *STALE))
    assert result.exit_code == 1
    told = " ".join(result.stdout.split())
    assert 'nothing explains [process 0, read: ok "red", revision 1]' in told
    assert 'the key holds "blue" at revision 2' in told
    assert "1 of 2 │ 0.000 │ 0.500 │ process 0, write " in told
    assert "none │ 4.000 │ 4.500 │ process 0, read: ok " in told
    assert "violation: 3 operations" in told


def test_what_cannot_be_decided_ends_with_code_2() -> None:
    """Unknown is never a pass."""
    result = run(RECORDED / "kv" / "c10-ok.txt", "--budget", "0.000001")
    assert result.exit_code == 2
    assert "unknown: 337 operations, 10 keys, model kv" in result.stdout
    assert "1e-06 s were not enough" in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"process": 0}\n', 'line 1: the member "type" is missing'),
        ("not a history\n", "line 1: not JSON, or cut short"),
        ("", "holds no operation, so there is nothing to judge"),
    ],
)
def test_what_is_no_history_ends_with_code_3(tmp_path: Path, text: str, complaint: str) -> None:
    """One line names the file and the place."""
    path = tmp_path / "history.jsonl"
    path.write_text(text, encoding="utf-8")
    result = run(path)
    assert result.exit_code == 3
    assert result.stderr.startswith(f"raftkv: {path}: {complaint}")
    assert result.stderr.count("\n") == 1


def test_a_file_that_is_not_there_ends_with_code_3(tmp_path: Path) -> None:
    """So do a directory, and a report that cannot be written."""
    assert run(tmp_path / "none").exit_code == 3
    assert f"{tmp_path}/none: No such file" in run(tmp_path / "none").stderr
    assert run(tmp_path).exit_code == 3
    good = history(tmp_path / "history.jsonl", *STALE[:2])
    assert run(good, "--html", tmp_path / "none" / "report.html").exit_code == 3


def test_a_pipe_is_read_like_a_file(tmp_path: Path) -> None:
    """Standard input is -, and a pipe that has a name has its end."""
    text = history(tmp_path / "history.jsonl", *STALE).read_bytes()
    piped = CliRunner().invoke(check_command, ["-", "--html", str(tmp_path / "r.html")], input=text)
    assert piped.exit_code == 1
    assert "violation: 3 operations" in piped.stdout
    assert "violation" in (tmp_path / "r.html").read_text(encoding="utf-8")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(pipe.write_bytes, text)
        assert run(pipe).stdout == run(tmp_path / "history.jsonl").stdout


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b"not a history\n", "-: line 1: not JSON"),
        (b"", "-: holds no operation"),
        (bytes(2**26 + 2**20), "-: line 1: has more than 67108864 bytes"),
    ],
)
def test_what_is_piped_is_named_and_bounded(text: bytes, complaint: str) -> None:
    """A pipe may have no end, and the copy of it is not what was asked for."""
    result = CliRunner().invoke(check_command, ["-"], input=text)
    assert result.exit_code == 3
    assert result.stderr.startswith(f"raftkv: {complaint}")
    assert result.stderr.count("\n") == 1


def test_verdicts_as_json(tmp_path: Path) -> None:
    """One document, and the same exit codes; keys as they are."""
    result = run(history(tmp_path / "history.jsonl", *STALE), "--json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert (document["verdict"], document["operations"]) == ("violation", 3)
    (key,) = document["keys"]
    assert (key["key"], key["verdict"], key["offending"]) == ("color", "violation", 2)
    assert "revision 2" in key["reason"]


def test_a_key_that_the_search_did_not_come_to_is_not_judged(tmp_path: Path) -> None:
    """It stopped at a violation, or before its first look: neither is an outcome of a search."""
    path = tmp_path / "history.jsonl"
    with HistoryWriter(path) as writer:
        for number, key in enumerate(("bad", "unseen")):
            at = 10 * number
            members = {"revision": 1}
            writer.write(Event(number, "invoke", "write", key, "red", at))
            writer.write(Event(number, "ok", "write", key, "red", at + 1, members))
            writer.write(Event(number, "invoke", "read", key, None, at + 2))
            writer.write(Event(number, "ok", "read", key, "blue", at + 3, members))
    told = " ".join(run(path).stdout.split())
    assert "not judged" in told
    assert "violation: 4 operations, 2 keys, model register; 1 not judged" in told
    verdicts = {
        one["key"]: one["verdict"] for one in json.loads(run(path, "--json").stdout)["keys"]
    }
    assert verdicts == {"bad": "violation", "unseen": "not judged"}
    late = json.loads(run(path, "--json", "--budget", "1e-9").stdout)
    assert late["verdict"] == "unknown"
    assert {one["verdict"] for one in late["keys"]} == {"not judged"}


def test_format_and_model_can_be_given(tmp_path: Path) -> None:
    """They decide, whatever the file looks like."""
    recorded = RECORDED / "jepsen-etcd" / "etcd_002.log"
    assert run(recorded).exit_code == 0
    assert run(recorded, "--format", "jepsen-etcd", "--model", "cas-register").exit_code == 0
    assert run(recorded, "--format", "kv").exit_code == 3
    wrong = run(recorded, "--model", "lock")
    assert wrong.exit_code == 3
    assert "the model lock has only acquire, release" in wrong.stderr


def test_a_report_is_written(tmp_path: Path) -> None:
    """With the faults of the run, if they were recorded beside the history."""
    path = history(tmp_path / "history.jsonl", *STALE)
    page = tmp_path / "report.html"
    assert run(path, "--html", page).exit_code == 1
    assert "violation" in page.read_text(encoding="utf-8")
    (tmp_path / "events.jsonl").write_text("{\n", encoding="utf-8")
    broken = run(path, "--html", page)
    assert broken.exit_code == 3
    assert "events.jsonl" in broken.stderr


def test_hostile_text_does_nothing_to_a_terminal(tmp_path: Path) -> None:
    """Escapes and markup in values are shown, not followed."""
    nasty = "\x1b[2J\x9b31m[bold]x"
    path = history(tmp_path / "h", ("write", nasty, 1), ("read", "[/bold]\x1b]0;", 1))
    result = run(path)
    assert result.exit_code == 1
    assert "\x1b" not in result.stdout
    assert "\x9b" not in result.stdout
    assert "[/bold]" in result.stdout


def test_hostile_names_do_nothing_to_a_terminal(tmp_path: Path) -> None:
    """Names of operations and of the file are theirs too."""
    path = tmp_path / "h\x9b\x07"
    end = Event(0, "ok", "wr\x9b\x07ite", "color", "x", 1)
    with HistoryWriter(path) as writer:
        writer.write(end)
    result = run(path)
    assert "has begun nothing" in result.stderr
    assert result.stderr[:-1].isprintable()


SPACES = " " * 10**6


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (f"INFO  jepsen.util - 0 :invoke :read n{SPACES}x", "cannot read the value n"),
        (f"INFO  jepsen.util - 0 :invoke{SPACES}x", "not a line of a Jepsen log"),
        (f"INFO{SPACES}jepsen.util - 0 :invoke", "not a line of a Jepsen log"),
        ("jepsen.util - 1 :a :b :invoke" * 30_000, "cannot read the value :invoke"),
        (f"{{:process 0, :type :invoke{SPACES}x}}", "not a map in EDN"),
        ("{" + ":a 1 " * 10**5 + "x}", "not a map in EDN"),
        ('{"process": 0, "time_ns": ' + "9" * 4000, "not JSON, or cut short"),
        (json.dumps({**UNKNOWN, "time_ns": 10**400}), '"time_ns" must be an integer of 64 bits'),
        (json.dumps({**UNKNOWN, "process": -(2**63)}), '"process" must be an integer of 64 bits'),
    ],
    ids=range(9),
)
def test_a_line_that_is_no_event_is_one_short_complaint(
    tmp_path: Path, text: str, complaint: str
) -> None:
    """However long it is: linear time to read, and a line that a person can read."""
    path = tmp_path / "h"
    path.write_text(text)
    result = run(path)
    assert result.exit_code == 3
    assert f"line 1: {complaint}" in result.stderr
    assert result.stderr.count("\n") == 1
    assert len(result.stderr) < 1000


@pytest.mark.parametrize("filler", [b"\0", b"\n"])
def test_a_file_without_an_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, filler: bytes
) -> None:
    """One line or many: it is read up to a bound, and not into all memory."""
    monkeypatch.setattr("raftkv.check.history.LINE_BYTES_MAX", 2**16)
    monkeypatch.setattr("raftkv.check.history.HISTORY_BYTES_MAX", 2**17)
    path = tmp_path / "h"
    path.write_bytes(filler * 2**20)
    result = run(path)
    assert result.exit_code == 3
    assert "more than" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_device_without_an_end_is_refused() -> None:
    """``/dev/zero`` is one line that never ends."""
    result = run("/dev/zero")
    assert result.exit_code == 3
    assert result.stderr == "raftkv: /dev/zero: line 1: has more than 67108864 bytes\n"
