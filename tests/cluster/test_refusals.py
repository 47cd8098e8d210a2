"""What a node refuses to start with, and how it says so: real commands on a real directory.

One directory is made once, by a node that ran and wrote. Every test breaks something around it,
sees the refusal, and mends it again; whatever order they ran in, the node must start in the end.
"""

import os
import shutil
import socket
import stat
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from raftkv import Client
from raftkv.cli.main import COMMANDS
from raftkv.client import UnavailableError, UnknownOutcomeError
from raftkv.storage.wal_format import SECTOR_BYTES, SEGMENT_HEADER, aligned, read_unit_header
from raftkv.testing import LocalCluster
from raftkv.testing.ports import PortReservation
from tests.cluster.small_disks import fill, small_disk
from tests.support.real_command import edited, moved_away, refusal, replaced, run, tree_digest

pytestmark = pytest.mark.cluster

VALUES = {f"key/{number}": f"value {number}" for number in range(40)}
SMALL = {"limits": {"wal_segment_bytes": 2**20, "snapshot_after_entries": 5}}
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can mount")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A cluster of one node with a log of many units and a snapshot, stopped."""
    directory = tmp_path_factory.mktemp("refusals")
    cluster = LocalCluster(directory, nodes=1, shards=2, options=SMALL)
    with cluster:
        with cluster.client(timeout_s=20) as client:
            for key, value in VALUES.items():
                client.put(key, value)
        snapshots = cluster.node("n1").directory / "data" / "snapshots"
        cluster.wait_for(
            lambda: len(list(snapshots.glob("*.snap"))) == 2, "a snapshot of both shards"
        )
        assert cluster.stop_node("n1") == 0
        yield cluster


@pytest.fixture
def node(cluster: LocalCluster) -> Path:
    """The node's directory, with its node.toml and its data."""
    return cluster.node("n1").directory


def refused(node: Path, *, before: Sequence[str] = ()) -> str:
    """Run ``raftkv serve``, check that it refuses and changes nothing, and return its line."""
    found = tree_digest(node.parent)
    line = refusal(run("serve", "--config", node / "node.toml", before=before))
    assert tree_digest(node.parent) == found, "a refused start has changed something"
    return line


def refused_with(node: Path, *changes: tuple[str, str]) -> str:
    """The same with other text in node.toml."""
    with edited(node / "node.toml", *changes):
        return refused(node)


def flipped(data: bytes, offset: int) -> bytes:
    """One bit is another."""
    return data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :]


# --- damage ---------------------------------------------------------------------------------------


def first_units(segment: bytes, count: int) -> list[tuple[int, int]]:
    """Where the first units of a segment begin, and where their bodies do."""
    marker = SEGMENT_HEADER.unpack_from(segment)[4]
    offset, found = aligned(SEGMENT_HEADER.size, SECTOR_BYTES), []
    for _ in range(count):
        unit = read_unit_header(segment, offset, marker)
        assert unit is not None
        found.append((unit.start, unit.body))
        offset = aligned(unit.end, SECTOR_BYTES)
    return found


def test_log_damaged_in_the_middle(node: Path) -> None:
    """A bit flipped in a unit's body or header: the file and the byte where it begins are named."""
    segment = min((node / "data" / "wal").glob("wal-*.log"))
    data = segment.read_bytes()
    _, (start, body), *_ = first_units(data, 4)
    for offset in (body + 3, start + 9):
        with replaced(segment, flipped(data, offset)):
            line = refused(node)
        assert line.startswith(f"{segment}: write-ahead log damaged at byte {start}: ")


def test_log_segment_missing_or_foreign(node: Path) -> None:
    """No segments at all, one that is no segment, one with a broken header: damage, and named."""
    wal = node / "data" / "wal"
    segment = min(wal.glob("wal-*.log"))
    data = segment.read_bytes()
    with moved_away(wal):
        wal.mkdir()
        assert refused(node).startswith(f"{wal}: write-ahead log damaged")
    for content, reason in (
        (b"", "0 bytes are too few for a segment"),
        (b"nonsense" * 2**17, "this is not a segment of a raftkv log"),
        (flipped(data, SEGMENT_HEADER.size - 2), "segment header checksum mismatch"),
    ):
        with replaced(segment, content):
            assert refused(node) == f"{segment}: write-ahead log damaged at byte 0: {reason}"


def test_snapshot_damaged(node: Path) -> None:
    """Flipped bits anywhere and a cut file: the snapshot is named; the log cannot replace it."""
    snapshot = min((node / "data" / "snapshots").glob("*.snap"))
    data = snapshot.read_bytes()
    middle, end = len(data) // 2, len(data) - 1
    contents = [*(flipped(data, offset) for offset in (20, middle, end)), data[:middle], b""]
    for content in contents:
        with replaced(snapshot, content):
            line = refused(node)
        assert line.startswith(f"{snapshot}: "), line
        assert "damaged" in line or "not a snapshot's piece" in line, line


def test_snapshot_missing(node: Path) -> None:
    """A log that begins after a snapshot that is gone has lost what was before."""
    with moved_away(min((node / "data" / "snapshots").glob("*.snap"))):
        line = refused(node)
    assert "the snapshot that covers what is before is missing" in line


def test_small_files_damaged(node: Path) -> None:
    """Identity, peers and map carry a checksum: an edit by hand is refused, and the file named."""
    identity, book, cluster_map = (node / "data" / name for name in ("identity", "peers", "map"))
    for file in (identity, cluster_map):
        data = file.read_bytes()
        for content in (flipped(data, len(data) // 2), b""):
            with replaced(file, content):
                assert refused(node) == f"{file}: checksum mismatch: the file was damaged or edited"
    assert not book.exists(), "a node without peers has met none"
    book.write_bytes(b'{"format":1,"peers":{}}\ncrc32 00000000\n')
    try:
        assert refused(node) == f"{book}: checksum mismatch: the file was damaged or edited"
    finally:
        book.unlink()


# --- whose directory ------------------------------------------------------------------------------


def test_directory_never_initialised(node: Path, tmp_path: Path) -> None:
    """One that is not there, an empty one, somebody else's: what to do is said, nothing is made."""
    somebodys = tmp_path / "somebodys"
    somebodys.mkdir()
    (somebodys / "thesis.txt").write_text("precious")
    for directory in (tmp_path / "none", tmp_path / "empty", somebodys):
        if directory.name == "empty":
            directory.mkdir()
        before = tree_digest(tmp_path)
        line = refused_with(node, ('data_dir = "data"', f'data_dir = "{directory}"'))
        assert line.startswith(f"data directory {directory} is not initialised: run raftkv init if")
        assert tree_digest(tmp_path) == before
    assert list(somebodys.iterdir()) == [somebodys / "thesis.txt"]


def test_wrong_cluster_and_wrong_node(node: Path) -> None:
    """A directory stays with the cluster and the node that it was made for."""
    data = node / "data"
    line = refused_with(node, ('id = "', 'id = "other-'))
    assert line.startswith(f"data directory {data} belongs to cluster ")
    assert line.endswith("'"), "what the configuration says is named as well"
    line = refused_with(node, ('name = "n1"', 'name = "n9"'), ("n1 = ", "n9 = "))
    assert line == f"data directory {data} belongs to node 'n1', not 'n9'"


def test_configuration_contradicts_the_stored_map(node: Path) -> None:
    """Shards, replicas and nodes are fixed when the data are laid out."""
    path = node / "data" / "map"
    end = "changing it needs a new cluster"
    # Without the option its default counts, and contradicts as well.
    line = refused_with(node, ("shards = 2\n", ""))
    assert line == f"cluster.shards: 4 in the configuration, but {path} was made with 2; {end}"
    other = ("[cluster.nodes]", '[cluster.nodes]\nn2 = "127.0.0.1:9"')
    line = refused_with(node, other)
    assert line == f"cluster.nodes: n1,n2 in the configuration, but {path} was made with n1; {end}"


def test_init_refuses_what_it_did_not_make(node: Path, tmp_path: Path) -> None:
    """An identity is minted once; a log or snapshots without one are not built upon."""
    config = node / "node.toml"
    before = tree_digest(node)
    line = refusal(run("init", "--config", config))
    assert line == f"data directory {node / 'data'} is initialised already; nothing was changed"
    half = tmp_path / "half"
    for part in ("wal", "snapshots"):
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir()
        shutil.copytree(node / "data" / part, half / part)
        found = tree_digest(half)
        with edited(config, ('data_dir = "data"', f'data_dir = "{half}"')):
            line = refusal(run("init", "--config", config))
        assert str(half) in line
        assert {name: d for name, d in tree_digest(half).items() if name in found} == found
        assert not (half / "identity").exists()
    assert tree_digest(node) == before


# --- configuration --------------------------------------------------------------------------------


def test_bad_toml_and_unknown_options(node: Path, tmp_path: Path) -> None:
    """The file is named with the line, or with the option and what was probably meant."""
    config = node / "node.toml"
    for changes, expected in (
        (("[cluster]", "[cluster"), "not TOML: "),
        (("[http]", "[http]\nworker = 1"), "http.worker: unknown option; did you mean workers?"),
        (("[http]", '[http]\nworkers = "2"'), "http.workers: must be an integer, not a string"),
        (("[http]", "[htpp]"), "htpp: unknown option; did you mean http?"),
    ):
        assert refused_with(node, changes).startswith(f"{config}: {expected}")
    with replaced(config, b"\xff\xfe"):
        assert refused(node) == f"{config}: not UTF-8 at byte 0"
    missing = tmp_path / "none.toml"
    line = refusal(run("serve", "--config", missing))
    assert line.startswith(f"{missing}: No such file or directory (--config or RAFTKV_CONFIG ")
    assert refusal(run("serve", "--config", tmp_path)) == f"{tmp_path}: Is a directory"


def test_secret_file(node: Path) -> None:
    """Missing, too short, not text, or readable by others: each named, with what to do."""
    secret = node.parent / "cluster.secret"
    config = node / "node.toml"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    shown = node / "../cluster.secret"
    start = f"{config}: security.secret_file: "
    with moved_away(secret):
        assert refused(node).startswith(f"{start}{shown}: No such file or directory; make it ")
    with replaced(secret, b"short\n"):
        assert refused(node) == f"{start}the secret is shorter than 16 bytes"
    with replaced(secret, b"\xff" * 40):
        assert refused(node) == f"{start}{shown}: not UTF-8"
    secret.chmod(0o644)
    try:
        expected = f"{start}{shown}: others may read it (mode 0644); chmod 600 it"
        assert refused(node) == expected
    finally:
        secret.chmod(0o600)


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates of two nodes, and files that are none."""
    directory = tmp_path_factory.mktemp("certs")
    names = ["--node", "n1=127.0.0.1", "--node", "n2=127.0.0.1"]
    assert run("certs", "--out", directory, *names).returncode == 0
    (directory / "nonsense.crt").write_text("nonsense")
    (directory / "empty.key").touch()
    return directory


@pytest.mark.parametrize(
    ("ca", "certificate", "key", "named"),
    [
        ("ca.crt", "n1.crt", "n2.key", "n1.crt"),
        ("ca.crt", "nonsense.crt", "n1.key", "nonsense.crt"),
        ("ca.crt", "n1.crt", "empty.key", "empty.key"),
        ("nonsense.crt", "n1.crt", "n1.key", "nonsense.crt"),
        ("ca.crt", "none.crt", "n1.key", "security.peer_cert: "),
    ],
)
def test_broken_peer_certificates(  # noqa: PLR0917 -- pytest passes them by name
    node: Path, certs: Path, ca: str, certificate: str, key: str, named: str
) -> None:
    """The key of another node, nonsense, an empty or missing file: the file is named."""
    files = {"peer_ca": ca, "peer_cert": certificate, "peer_key": key}
    options = "\n".join(f'{option} = "{certs / file}"' for option, file in files.items())
    line = refused_with(node, ("[security]", f"[security]\n{options}"))
    assert named in line
    assert "security.peer_" in line


@pytest.mark.parametrize(
    ("certificate", "key", "named"),
    [
        ("n1.crt", "n2.key", "n2.key"),
        ("nonsense.crt", "n1.key", "nonsense.crt"),
        ("n1.crt", "empty.key", "empty.key"),
        ("none.crt", "n1.key", "none.crt"),
    ],
)
def test_broken_http_certificates(
    node: Path, certs: Path, certificate: str, key: str, named: str
) -> None:
    """Found before anything is started, not by workers that end again and again."""
    options = f'tls_cert = "{certs / certificate}"\ntls_key = "{certs / key}"'
    line = refused_with(node, ("[http]", f"[http]\n{options}"))
    assert named in line
    assert "http.tls_" in line


# --- the other commands ---------------------------------------------------------------------------

NOBODY = ("--endpoint", "http://127.0.0.1:9", "--timeout", "1")

MISTAKES: tuple[tuple[tuple[str, ...], int, str], ...] = (
    (("nosuch",), 2, "No such command 'nosuch'"),
    (("get",), 2, "Missing argument 'KEY'"),
    (("get", "", *NOBODY), 3, "a key has 1 to 1024 bytes, not 0"),
    (
        ("get", "k", "--endpoint", "ftp://x"),
        2,
        "'ftp://x' is not a URL such as http://127.0.0.1:8000",
    ),
    (("get", "k", *NOBODY), 3, "http://127.0.0.1:9: [Errno 111] Connection refused"),
    (("get", "k", "--timeout", "nan"), 2, "nan is not a number of seconds"),
    (("get", "k", "--ca", "afile"), 2, "afile: no PEM certificate of a CA"),
    (("get", "k", "--token", "a\nb", *NOBODY), 2, "characters that a token cannot have"),
    (("put", "k"), 2, "give either VALUE or --file"),
    (("put", "k", "--file", "none"), 2, "'none': No such file or directory"),
    (("put", "k", "v", "--if-absent", "--if-revision", "3"), 2, "exclude each other"),
    (("del", "k", "--if-revision", "0"), 2, "no key has revision 0"),
    (("scan", "p", "--start", "a"), 2, "PREFIX excludes --start and --end"),
    (("status", "extra"), 2, "unexpected extra argument (extra)"),
    (("explain",), 2, "Missing argument 'KEY'"),
    (("transfer-leader", "x"), 2, "Invalid value for 'SHARD': 'x'"),
    (("ring", "--shards", "0"), 2, "Invalid value for '--shards'"),
    (("ring", "--keys", "9", "--svg", "afile/x"), 1, "afile/x': Not a directory"),
    (("certs", "--out", "c", "--node", "n1"), 2, "'n1' is not NAME=HOST[,HOST...]"),
    (("certs", "--out", "c", "--node", "ca=::1"), 1, "'ca' cannot be the name of a node"),
    (("certs", "--out", "afile/c", "--node", "n1=::1"), 1, "afile/c: Not a directory"),
    (("certs", "--out", "broken", "--node", "n1=::1"), 1, "broken/ca.key: not a usable CA"),
    (("token", "--role", "root"), 2, "Invalid value for '--role': 'root'"),
    (("dev", "--nodes", "3", "--replicas", "5"), 2, "--replicas 5 needs at least as many --nodes"),
    (("dev", "--http-port", "65535", "--nodes", "3"), 2, "leaves no room for 3 nodes"),
    (("dev", "--data-dir", "afile/x"), 1, "afile/x: Not a directory"),
    (("dev", "--data-dir", "broken"), 1, "is not empty and was not made by raftkv dev"),
    (("init", "--config", "none.toml"), 1, "none.toml: No such file or directory"),
    (("serve", "--nosuch"), 2, "No such option '--nosuch'"),
    (("bench", "failover", "--kills", "0"), 2, "Invalid value for '--kills'"),
    (("backup",), 2, "Missing argument 'FILE'"),
    (("restore", "none"), 1, "none: No such file or directory"),
    (("ready", "--config", "none.toml"), 1, "none.toml: No such file or directory"),
    (("top", "--interval", "0"), 2, "Invalid value for '--interval'"),
    (("sim",), 2, "say either --seeds FIRST:END or --seed N"),
    (("sim", "--seed", "1", "--set", "nodes=0"), 2, "nodes: 0 is not between 1 and 9"),
    (("chaos", "--faults", "meteor"), 3, "--faults meteor: use some of kill,"),
    (("check", "afile"), 3, "afile: line 1: not JSON, or cut short"),
    (("check", "missing.jsonl"), 3, "missing.jsonl: No such file or directory"),
)


def test_every_command_with_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last line names the argument or file, nothing is made, no traceback is shown."""
    (tmp_path / "afile").write_text("content")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "ca.crt").write_text("nonsense")
    (tmp_path / "broken" / "ca.key").write_text("nonsense")
    before = tree_digest(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    with ThreadPoolExecutor(3) as pool:
        every = list(pool.map(lambda mistake: run(*mistake[0]), MISTAKES))
    for (arguments, code, expected), done in zip(MISTAKES, every, strict=True):
        said = f"{arguments}: code {done.returncode}, standard error:\n{done.stderr}"
        assert done.returncode == code, said
        assert expected in done.stderr.splitlines()[-1], said
        assert "Traceback" not in done.stderr, said
    assert {arguments[0] for arguments, _, _ in MISTAKES} >= set(COMMANDS)
    assert tree_digest(tmp_path) == before


# --- addresses ------------------------------------------------------------------------------------


def listen_line(node: Path) -> str:
    """The line of node.toml with the clients' address."""
    lines = (node / "node.toml").read_text().splitlines()
    return next(line for line in lines if line.startswith("listen = "))


def test_port_in_use(node: Path) -> None:
    """For clients and for peers the option and the address are named, before anything is done."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        expected = f"listen: cannot listen at {address}: Address already in use"
        line = refused_with(node, (listen_line(node), f'listen = "{address}"'))
        assert line == f"http.{expected}"
        line = refused_with(node, ("[http]", f'[peer]\nlisten = "{address}"\n[http]'))
        assert line == f"peer.{expected}"


def test_address_of_another_machine(node: Path) -> None:
    """An address that this machine does not have, and a name that nobody has."""
    insecure = ("[security]", "[security]\ninsecure = true")
    for listen, reason in (
        ("192.0.2.1:9000", "cannot listen at 192.0.2.1:9000: Cannot assign requested address"),
        ("no-such-host.invalid:9000", "no-such-host.invalid:9000: Name or service not known"),
    ):
        line = refused_with(node, (listen_line(node), f'listen = "{listen}"'), insecure)
        assert line.startswith(f"http.listen: {reason[:30]}"), line
        line = refused_with(node, ("[http]", f'[peer]\nlisten = "{listen}"\n[http]'), insecure)
        assert line.startswith(f"peer.listen: {reason[:30]}"), line


# --- disks ----------------------------------------------------------------------------------------


def test_directory_below_a_file(node: Path, tmp_path: Path) -> None:
    """A path that cannot exist, for root neither."""
    file = tmp_path / "file"
    file.write_text("content")
    below = file / "data"
    with edited(node / "node.toml", ('data_dir = "data"', f'data_dir = "{below}"')):
        line = refused(node)
        assert line.startswith(("data directory", "cannot use data directory"))
        assert str(below) in line
        line = refusal(run("init", "--config", node / "node.toml"))
        assert line.startswith(f"cannot initialise data directory {below}: ")
        assert line.endswith("Not a directory")
    with edited(node / "node.toml", ('pid_file = "pid"', f'pid_file = "{file}/pid"')):
        assert refused(node) == f"node.pid_file: {file}/pid: Not a directory"
    assert file.read_text() == "content"


def read_only(directory: Path) -> tuple[str, ...]:
    """What to put before a command that is to see ``directory`` read-only; gone with it."""
    script = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && shift && exec "$@"'
    return ("unshare", "--mount", "sh", "-c", script, "sh", str(directory))


@needs_root
def test_read_only_directory(node: Path, tmp_path: Path) -> None:
    """Neither serve nor init can do without writing; both say where they could not."""
    data = node / "data"
    line = refused(node, before=read_only(data))
    assert line == (
        f"cannot use data directory {data}: {data}/lock: cannot lock: Read-only file system"
    )
    new = tmp_path / "new"
    with edited(node / "node.toml", ('data_dir = "data"', f'data_dir = "{new}"')):
        line = refusal(run("init", "--config", node / "node.toml", before=read_only(tmp_path)))
    assert line.startswith(f"cannot initialise data directory {new}: {new}: cannot create: Read-on")
    assert not new.exists()


@needs_root
def test_full_disk_at_the_start(node: Path, tmp_path: Path) -> None:
    """Both init and a first serve say that there is no space, and go through once there is some."""
    config = node / "node.toml"
    (tmp_path / "disk").mkdir()
    with small_disk(tmp_path / "disk", "8m") as disk:
        with edited(config, ('data_dir = "data"', f'data_dir = "{disk / "data"}"')):
            ballast = fill(disk)
            line = refusal(run("init", "--config", config))
            assert line.startswith(f"cannot initialise data directory {disk / 'data'}: ")
            assert line.endswith("No space left on device")
            ballast.unlink()
            assert run("init", "--config", config).returncode == 0
            ballast = fill(disk)
            before = tree_digest(disk / "data")
            line = refusal(run("serve", "--config", config))
            assert "No space left on device" in line
            assert str(disk / "data") in line
            kept = tree_digest(disk / "data")
            assert {name: kept.get(name) for name in before} == before
            ballast.unlink()
        pid_file = disk / "pid"
        fill(disk)
        with edited(config, ('pid_file = "pid"', f'pid_file = "{pid_file}"')):
            assert refused(node) == f"node.pid_file: {pid_file}: No space left on device"


# --- processes ------------------------------------------------------------------------------------


def test_second_process_and_start_after_all(cluster: LocalCluster, node: Path) -> None:
    """After every refusal the node starts with its data; a second one on them is refused."""
    cluster.start_node("n1")
    cluster.wait_ready()
    config = node / "node.toml"
    pid = cluster.pid("n1")
    line = refusal(run("serve", "--config", config))
    assert line == f"node.pid_file: {node}/pid: the node runs already, as process {pid}"
    ports = PortReservation(2)
    second = node / "second.toml"
    http, peer = (f"127.0.0.1:{port}" for port in ports.ports)
    text = config.read_text().replace('pid_file = "pid"\n', "")
    text = text.replace(listen_line(node), f'listen = "{http}"')
    second.write_text(text.replace("[http]", f'[peer]\nlisten = "{peer}"\n[http]'))
    for command in ("serve", "init"):
        line = refusal(run(command, "--config", second))
        assert line == f"data directory {node}/data is in use: held by process {pid}"
    ports.release()
    second.unlink()
    with cluster.client(timeout_s=20) as client:
        assert {e.key.decode(): e.value.decode() for e in client.scan("key/")} == VALUES
    assert cluster.stop_node("n1") == 0


def said(cluster: LocalCluster, name: str, *words: str) -> bool:
    """Whether a node has logged a line with all these words."""
    lines = cluster.node(name).log.read_text().splitlines()
    return any(all(word in line for word in words) for line in lines)


@pytest.mark.raftkv_cluster(shards=2)
def test_a_node_that_lost_its_disk_does_not_count(raftkv_cluster: LocalCluster) -> None:
    """Made anew under its old name it is let in by nobody, and both sides say so; others go on."""
    cluster = raftkv_cluster
    with cluster.client(timeout_s=20) as client:
        client.put("before", "1")
    cluster.kill("n2")
    cluster.node("n2").log.unlink()  # what it said in its first life
    shutil.rmtree(cluster.node("n2").directory / "data")
    line = refusal(run("serve", "--config", cluster.node("n2").config))
    assert "is not initialised" in line
    assert run("init", "--config", cluster.node("n2").config).returncode == 0
    cluster.start_node("n2")

    again = "came back with another identity"
    for peer in ("n1", "n3"):  # n1 dials n2, n2 dials n3: both directions of a link
        cluster.wait_for(lambda peer=peer: said(cluster, peer, "peer n2", again), f"{peer} says")  # type: ignore[misc]
        assert said(cluster, peer, "peer n2", "must not vote or count")
    for peer in ("n1", "n3"):
        words = (f"peer {peer}", "refuses this node", again)
        cluster.wait_for(lambda words=words: said(cluster, "n2", *words), f"n2 hears of {peer}")  # type: ignore[misc]
    survivors = [cluster.node(name).url for name in ("n1", "n3")]
    with Client(survivors, timeout_s=20) as client:
        client.put("without", "2")
        rows = {row["name"]: row for row in client.status("cluster")["nodes"]}
        assert [rows[name]["reachable"] for name in cluster.names] == [True, False, True]
    assert not cluster.is_ready("n2")
    assert not said(cluster, "n2", ": leader")

    # Two of three are a majority, and the new n2 is not the second of them.
    cluster.kill("n3")
    with Client(cluster.node("n1").url, timeout_s=3) as client:
        with pytest.raises((UnavailableError, UnknownOutcomeError)):
            client.put("alone", "3")
        with pytest.raises(UnavailableError):
            client.get("before")
        assert client.get("before", consistency="stale") is not None
    cluster.start_node("n3")
    cluster.wait_ready(only=("n1", "n3"))
    with Client(survivors, timeout_s=20) as client:
        found = {entry.key for entry in client.scan()}
        assert found >= {b"before", b"without"}
