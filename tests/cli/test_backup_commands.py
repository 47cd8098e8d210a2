"""``raftkv backup`` and ``restore``: what goes into the file comes out of it, or is refused."""

import fcntl
import gzip
import hashlib
import json
import lzma
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from raftkv import Client
from raftkv.cli.backup_file import verify_backup
from raftkv.cli.main import cli
from raftkv.client import Put
from tests.support.front_end import FrontEnd, front_end

CONTENT = {
    b"color": b"red",
    b"empty": b"",
    b"\xff\x00key": b"\x80\x81",
    "größe".encode(): "żółw\n\u2028".encode(),
    b"base64": b"/w==",
    **{f"many/{number:04}".encode(): str(number).encode() for number in range(1200)},
}


@pytest.fixture
def source() -> Iterator[FrontEnd]:
    """A front end whose store holds the content."""
    with front_end() as made:
        fill(made, CONTENT)
        yield made


@pytest.fixture
def target() -> Iterator[FrontEnd]:
    """A front end with an empty store."""
    with front_end() as made:
        yield made


def fill(where: FrontEnd, content: dict[bytes, bytes]) -> None:
    """Write keys and values."""
    with Client(where.url) as client:
        client.batch([Put(key, value) for key, value in content.items()])


def content_of(where: FrontEnd) -> dict[bytes, bytes]:
    """Everything a store holds."""
    with Client(where.url) as client:
        return {entry.key: entry.value for entry in client.scan()}


def run(where: FrontEnd, *arguments: str | Path) -> Result:
    """Run a raftkv command against a store."""
    environment = {"RAFTKV_ENDPOINTS": where.url, "RAFTKV_TOKEN": ""}
    return CliRunner().invoke(cli, [str(one) for one in arguments], env=environment)


def test_everything_is_restored_as_it_was(
    source: FrontEnd, target: FrontEnd, tmp_path: Path
) -> None:
    """Any bytes, in keys and values, more of them than one request takes."""
    file = tmp_path / "backup"
    saved = run(source, "backup", file)
    assert saved.exit_code == 0, saved.output
    assert saved.stdout.startswith(f"{len(CONTENT)} keys in the backup; backup of cluster ")
    restored = run(target, "restore", file, "--json")
    assert restored.exit_code == 0, restored.output
    assert json.loads(restored.stdout)["entries"] == len(CONTENT)
    assert content_of(target) == CONTENT


def test_the_file_can_be_read_without_raftkv(source: FrontEnd, tmp_path: Path) -> None:
    """Lines of JSON in the order of keys, for nobody else to read, and nothing left beside it."""
    file = tmp_path / "backup"
    assert run(source, "backup", file).exit_code == 0
    header, *entries, trailer = (json.loads(line) for line in file.read_text().splitlines())
    assert (header["format"], header["version"]) == ("raftkv-backup", 1)
    assert trailer["entries"] == len(entries) == len(CONTENT)
    color = next(entry for entry in entries if entry.get("key") == "color")
    assert color["value"] == "red"
    assert color["revision"] > 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [file]


def test_standard_output_takes_a_backup_too(
    source: FrontEnd, target: FrontEnd, tmp_path: Path
) -> None:
    """For pipes into compression or elsewhere; what there is to say goes to standard error."""
    done = run(source, "backup", "-")
    assert "keys in the backup" in done.stderr
    file = tmp_path / "piped"
    file.write_bytes(done.stdout_bytes)
    assert run(target, "restore", file).exit_code == 0
    assert content_of(target) == CONTENT


def test_what_exists_with_another_value_is_left_alone(
    source: FrontEnd, target: FrontEnd, tmp_path: Path
) -> None:
    """It is listed, the rest is restored, and the code says that not all is as in the file."""
    run(source, "backup", tmp_path / "backup")
    fill(target, {b"color": b"blue", b"empty": b"", b"another": b"one"})
    done = run(target, "restore", tmp_path / "backup")
    assert done.exit_code == 1
    restored = len(CONTENT) - 2
    assert done.stdout.startswith(f"{restored} keys restored, 1 were there already; backup of ")
    assert "1 keys hold something else and were left alone" in done.stderr
    assert done.stderr.rstrip().endswith(": color")
    assert content_of(target) == {**CONTENT, b"color": b"blue", b"another": b"one"}


def test_overwrite_replaces_it(source: FrontEnd, target: FrontEnd, tmp_path: Path) -> None:
    """Keys of the file get its values; keys that it does not have stay."""
    run(source, "backup", tmp_path / "backup")
    fill(target, {b"color": b"blue", b"another": b"one"})
    assert run(target, "restore", tmp_path / "backup", "--overwrite").exit_code == 0
    assert content_of(target) == {**CONTENT, b"another": b"one"}


def test_a_restore_can_be_repeated(source: FrontEnd, target: FrontEnd, tmp_path: Path) -> None:
    """The second run finds everything there and changes nothing, not even revisions."""
    run(source, "backup", tmp_path / "backup")
    said = run(target, "restore", tmp_path / "backup").stdout
    assert said.startswith(f"{len(CONTENT)} keys restored; backup of cluster ")
    with Client(target.url) as client:
        first = list(client.scan())
        again = run(target, "restore", tmp_path / "backup")
        assert again.exit_code == 0
        assert again.stdout.startswith(
            f"0 keys restored, {len(CONTENT)} were there already; backup of cluster "
        )
        assert list(client.scan()) == first
    counted = json.loads(run(target, "restore", tmp_path / "backup", "--json").stdout)
    assert (counted["restored"], counted["there_already"]) == (0, len(CONTENT))


def test_an_empty_store_makes_a_backup_too(target: FrontEnd, tmp_path: Path) -> None:
    """No entry is not no file."""
    assert run(target, "backup", tmp_path / "backup").exit_code == 0
    with (tmp_path / "backup").open("rb") as lines:
        assert verify_backup(tmp_path / "backup", lines).entries == 0
    assert run(target, "restore", tmp_path / "backup").exit_code == 0


# --- files that cannot be trusted -----------------------------------------------------------------

Spoil = Callable[[bytes], bytes]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda _: b"", "is not a file of raftkv backup"),
        (lambda _: b"PK\x03\x04", "is not a file of raftkv backup"),
        (lambda data: data.replace(b'"version":1', b'"version":2', 1), "has version 2"),
        (lambda data: data.replace(b'"red"', b'"tan"'), "is damaged"),
        (lambda data: data[: data.rindex(b"{")], "the backup was not finished"),
        (lambda data: data[:-40], "ends before its end"),
        (lambda data: data[: data.index(b"\n") + 1], "the backup was not finished"),
        (lambda data: data + data, "is damaged"),
    ],
)
def test_a_file_that_is_not_whole_is_refused_before_anything_is_written(
    source: FrontEnd, target: FrontEnd, tmp_path: Path, spoil: Spoil, reason: str
) -> None:
    """One line names the file and what is wrong, and the store stays empty."""
    file = tmp_path / "backup"
    run(source, "backup", file)
    file.write_bytes(spoil(file.read_bytes()))
    for options in ([], ["--check"]):
        done = run(target, "restore", file, *options)
        assert done.exit_code == 1
        assert done.stderr.startswith(f"raftkv: {file}: ")
        assert reason in done.stderr
        assert done.stderr.count("\n") == 1
    assert content_of(target) == {}


def test_check_reads_the_file_and_writes_nothing(
    source: FrontEnd, target: FrontEnd, tmp_path: Path
) -> None:
    """For the day after a backup was made."""
    run(source, "backup", tmp_path / "backup")
    done = run(target, "restore", tmp_path / "backup", "--check")
    assert (done.exit_code, done.stdout.split(";")[0]) == (
        0,
        f"{len(CONTENT)} keys in the file, which is whole",
    )
    assert content_of(target) == {}


def test_a_backup_that_fails_leaves_the_older_one(source: FrontEnd, tmp_path: Path) -> None:
    """An unreachable cluster, and a directory that is not there, spoil nothing."""
    file = tmp_path / "backup"
    run(source, "backup", file)
    before = file.read_bytes()
    failed = run(source, "backup", file, "--endpoint", "http://127.0.0.1:1", "--timeout", "0.2")
    assert failed.exit_code == 3
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]
    nowhere = run(source, "backup", tmp_path / "none" / "backup")
    assert nowhere.exit_code == 1
    assert "No such file or directory" in nowhere.stderr


@pytest.mark.parametrize(("compress", "reader"), [(gzip.compress, "gzip"), (lzma.compress, "xz")])
def test_a_compressed_file_is_named_with_how_it_is_read(
    source: FrontEnd, target: FrontEnd, tmp_path: Path, compress: Spoil, reader: str
) -> None:
    """By its content, whatever its name is; also to who leaves the ending of the name away."""
    file = tmp_path / f"backup.{'gz' if reader == 'gzip' else reader}"
    run(source, "backup", file)
    file.write_bytes(compress(file.read_bytes()))
    advice = f"{reader} -dc {file} | raftkv restore -"
    done = run(target, "restore", file)
    assert (done.exit_code, done.stderr) == (1, f"raftkv: {file}: is compressed: {advice}\n")
    without = run(target, "restore", tmp_path / "backup")
    assert without.exit_code == 1
    assert without.stderr == (
        f"raftkv: {tmp_path / 'backup'}: No such file or directory, but {file}: {advice}\n"
    )
    piped = CliRunner().invoke(
        cli, ["restore", "-", "--endpoint", target.url], input=file.read_bytes()
    )
    assert piped.stderr == f"raftkv: -: is compressed: {reader} -dc FILE | raftkv restore -\n"


def test_a_missing_file_is_one_line(target: FrontEnd, tmp_path: Path) -> None:
    """It is named."""
    done = run(target, "restore", tmp_path / "none")
    assert (done.exit_code, done.stderr) == (
        1,
        f"raftkv: {tmp_path / 'none'}: No such file or directory\n",
    )


def backup_of(*entries: bytes) -> bytes:
    """A file whose checksum is right, whatever its entries are."""
    header = b'{"format":"raftkv-backup","version":1,"cluster":"c","began":""}\n'
    lines = header + b"".join(entry + b"\n" for entry in entries)
    sha256 = hashlib.sha256(lines).hexdigest()
    trailer = {"entries": len(entries), "sha256": sha256, "ended": ""}
    return lines + json.dumps(trailer).encode() + b"\n"


GOOD = b'{"key":"a","value":"v"}'


@pytest.mark.parametrize(
    "entry",
    [
        b'{"value":"v"}',
        b'{"key":null,"value":"v"}',
        b'{"key":5,"value":"v"}',
        b'{"key":true,"value":"v"}',
        b'{"key":["k"],"value":"v"}',
        b'{"key":"k","value":null}',
        b'{"key":"k","value":7}',
        b'{"key":"k"}',
        b'{"key":"","value":"v"}',
        b'{"key":"k","key_base64":"aw==","value":"v"}',
        b'{"key_base64":"a","value":"v"}',
        b'{"key_base64":"!!!!","value":"v"}',
        b'{"key":"' + b"k" * 1025 + b'","value":"v"}',
        b'{"key":"\\ud800","value":"v"}',
        b'{"key":"k","value":' + b"[" * 100_000,
        b'["key","value"]',
        b"null",
        b"\xff",
        b"",
        GOOD,
    ],
)
def test_an_entry_that_makes_no_sense_is_refused_before_anything_is_written(
    target: FrontEnd, tmp_path: Path, entry: bytes
) -> None:
    """The checksum says that nothing changed, not that it was right; nothing is bent to fit."""
    file = tmp_path / "backup"
    file.write_bytes(backup_of(GOOD, entry))
    for options in ([], ["--check"]):
        done = run(target, "restore", file, *options)
        assert done.exit_code == 1
        assert done.stderr.startswith(f"raftkv: {file}: ")
        assert done.stderr.count("\n") == 1
        assert len(done.stderr) < 400
    assert content_of(target) == {}


def test_a_backup_is_read_from_standard_input(target: FrontEnd) -> None:
    """For pipes out of compression or from elsewhere."""
    environment = {"RAFTKV_ENDPOINTS": target.url}
    done = CliRunner().invoke(cli, ["restore", "-"], input=backup_of(GOOD), env=environment)
    assert done.exit_code == 0, done.output
    assert content_of(target) == {b"a": b"v"}


def test_what_a_killed_backup_left_is_written_over(source: FrontEnd, tmp_path: Path) -> None:
    """In a container every process has the same number: the name of what is left says nothing."""
    (tmp_path / ".backup.partial").write_bytes(b"half of a backup" * 100_000)
    assert run(source, "backup", tmp_path / "backup").exit_code == 0
    assert run(source, "restore", "--check", tmp_path / "backup").exit_code == 0
    assert list(tmp_path.iterdir()) == [tmp_path / "backup"]


def test_two_backups_do_not_write_one_file(source: FrontEnd, tmp_path: Path) -> None:
    """The second is refused; the first is not disturbed."""
    with (tmp_path / ".backup.partial").open("wb") as running:
        fcntl.flock(running, fcntl.LOCK_EX)
        running.write(b"what the first has written")
        running.flush()
        refused = run(source, "backup", tmp_path / "backup")
    assert refused.exit_code == 1
    assert "another backup is writing it" in refused.stderr
    assert (tmp_path / ".backup.partial").read_bytes() == b"what the first has written"


def test_the_checksum_is_that_of_all_lines_but_the_last(source: FrontEnd, tmp_path: Path) -> None:
    """What the command prints can be checked without raftkv."""
    file = tmp_path / "backup"
    said = run(source, "backup", file).stdout
    lines = file.read_bytes().splitlines(keepends=True)
    assert hashlib.sha256(b"".join(lines[:-1])).hexdigest() in said


def test_the_head_of_a_file_does_not_drive_the_terminal(
    source: FrontEnd, target: FrontEnd, tmp_path: Path
) -> None:
    """A backup that came from somebody else says what it is of in one line, with escapes."""
    file = tmp_path / "backup"
    run(source, "backup", file)
    lines = file.read_bytes().splitlines(keepends=True)
    head = {**json.loads(lines[0]), "cluster": "x\x1b[2J\nraftkv: forged", "began": "\x9b31m"}
    body = [json.dumps(head).encode() + b"\n", *lines[1:-1]]
    trailer = json.loads(lines[-1])
    trailer |= {"sha256": hashlib.sha256(b"".join(body)).hexdigest(), "ended": "\u202e"}
    file.write_bytes(b"".join(body) + json.dumps(trailer).encode())
    for option in ((), ("--check",)):
        restored = run(target, "restore", file, *option)
        assert restored.exit_code == 0
        assert restored.stdout.removesuffix("\n").isprintable()
