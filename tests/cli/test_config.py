"""node.toml: what is accepted, and the one line that each mistake gets."""

import configparser
import hashlib
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from raftkv.cli.config import ConfigError, load
from raftkv.cli.main import cli
from raftkv.engine.config import Address, NodeConfig, parse_address

EXAMPLE = Path(__file__).parents[2] / "deploy" / "node.toml"
SECRET = "a secret of enough bytes"

MINIMAL = f"""
[cluster]
id = "demo"
replicas = 1
[cluster.nodes]
n1 = "127.0.0.1:7001"
[node]
name = "n1"
data_dir = "data"
[security]
secret = "{SECRET}"
"""

THREE = MINIMAL.replace(
    'n1 = "127.0.0.1:7001"',
    'n1 = "127.0.0.1:7001"\nn2 = "127.0.0.1:7002"\nn3 = "127.0.0.1:7003"',
)

TOKEN = f'[[security.tokens]]\nrole = "read"\nsha256 = "{hashlib.sha256(b"x").hexdigest()}"\n'

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a node.toml and say where."""

    def write_file(text: str) -> Path:
        file = tmp_path / "node.toml"
        file.write_text(text, encoding="utf-8")
        file.chmod(0o600)  # it may hold the secret
        return file

    return write_file


def options_of(kind: type[msgspec.Struct]) -> dict[str, type]:
    """The options that a table has, by name."""
    return {field.name: field.type for field in msgspec.structs.fields(kind)}


def test_the_commented_example_parses(tmp_path: Path) -> None:
    """deploy/node.toml is a configuration that works once its secret file is there."""
    secret = tmp_path / "cluster.secret"
    secret.write_text(SECRET)
    secret.chmod(0o600)
    (tmp_path / "node.toml").write_text(EXAMPLE.read_text())
    config = load(tmp_path / "node.toml")
    assert config.peers == {"n2": ("127.0.0.1", 7002), "n3": ("127.0.0.1", 7003)}
    assert config.security.secret == SECRET
    assert config.node.data_dir == str(tmp_path / "data")


def test_the_example_comes_with_the_package(tmp_path: Path) -> None:
    """Whoever has installed raftkv has it, without a checkout and without a configuration."""
    printed = CliRunner().invoke(cli, ["init", "--example", "--config", str(tmp_path / "none")])
    assert (printed.exit_code, printed.stdout) == (0, EXAMPLE.read_text())
    settings = configparser.ConfigParser()
    settings.read(EXAMPLE.parents[1] / "setup.cfg")
    assert "cli/example.toml" in settings["options.package_data"]["raftkv"].split()


def test_the_example_shows_every_option_with_its_default() -> None:
    """An option that the example forgets, or shows with another default, fails this test."""
    lines = [line.removeprefix("# ") for line in EXAMPLE.read_text().splitlines()]
    for table, kind in options_of(NodeConfig).items():
        assert f"[{table}]" in lines
        for field in msgspec.structs.fields(kind):
            if field.name in {"tokens", "nodes", "secret"}:
                continue
            shown = [line for line in lines if line.startswith(f"{field.name} = ")]
            assert shown, field.name
            if isinstance(field.default, int) and field.name != "insecure":
                assert f"{field.name} = {field.default}" in shown


def test_defaults_are_enough_for_one_node(write: Write) -> None:
    """A node alone needs its cluster, its name and a directory."""
    config = load(write(MINIMAL))
    assert config.http_listen == ("127.0.0.1", 8000)
    assert config.peer_listen == ("127.0.0.1", 7001)
    assert config.peers == {}


@pytest.mark.parametrize(
    ("text", "option", "reason"),
    [
        ("[http]\nworker = 2", "http.worker", "unknown option; did you mean workers?"),
        ("[htpp]\n", "htpp", "unknown option; did you mean http?"),
        ('[http]\nworkers = "2"', "http.workers", "must be an integer, not a string"),
        ("[http]\nworkers = 0", "http.workers", "must be >= 1"),
        ('[http]\nlisten = "8000"', "http.listen", "is not host:port"),
        ('[http]\nlisten = "127.0.0.1:99999"', "http.listen", "port 99999"),
        ('[http]\nlisten = "[::g]:80"', "http.listen", "not an IPv6 address"),
        ('[http]\nlisten = "127.0.0.1:7001"', "http.listen", "is a peer address"),
        ('[peer]\nlisten = "127.0.0.1:8000"', "http.listen", "is a peer address"),
        ('[http]\ntls_cert = "node.toml"', "http.tls_key", "go together"),
        ('[http]\ntls_key = "none.pem"', "http.tls_key", "no such file"),
        ("[raft]\nheartbeat_ms = 400", "raft.election_timeout_ms_min", "three heartbeats"),
        (
            "[raft]\nheartbeat_ms = 400\nelection_timeout_ms_min = 1200",
            "raft.election_timeout_ms_min",
            "is not more than three heartbeats",
        ),
        ("[raft]\nelection_timeout_ms_max = 9", "raft.election_timeout_ms_min", "is more than"),
        ('[http]\nlisten = "0.0.0.0:8000"', "http.listen", "is not loopback"),
        ('[http]\nlisten = "db.example:8000"', "http.listen", "is not loopback"),
        ('[peer]\nlisten = "10.0.0.1:7001"', "peer.listen", "is not loopback"),
        (
            TOKEN.replace("read", "root"),
            "security.tokens[0].role",
            "root is not one of the values allowed: read, write, admin",
        ),
        (TOKEN + "rol = 1", "security.tokens[0].rol", "unknown option; did you mean role?"),
        (TOKEN[:-10] + '"', "security.tokens[0].sha256", "right form"),
        ("[node]\n", "node.toml", "not TOML"),
    ],
)
def test_a_mistake_gets_one_line_that_names_file_and_option(
    write: Write, text: str, option: str, reason: str
) -> None:
    """Each mistake added to a good file is named with its file, its option and a reason."""
    file = write(f"{MINIMAL}\n{text}\n")
    with pytest.raises(ConfigError) as caught:
        load(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    assert option in message
    assert reason in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("old", "new", "option", "reason"),
    [
        ('id = "demo"\n', "", "cluster.id", "is missing"),
        ("replicas = 1", "replicas = 3", "cluster.replicas", "need more than 1 node"),
        ("replicas = 1", "replicas = 1\nshards = 0", "cluster.shards", "must be >= 1"),
        ('name = "n1"', 'name = "n9"', "node.name", "not listed in cluster.nodes"),
        ('n1 = "127.0.0.1:7001"', "n1 = 7001", "cluster.nodes", "must be a string"),
        ('n1 = "127.0.0.1:7001"', 'n1 = "nowhere"', "cluster.nodes.n1", "is not host:port"),
        ('n1 = "127.0.0.1:7001"', '"n/1" = "a:1"', "cluster.nodes", "right form"),
        ('n1 = "127.0.0.1:7001"', 'n1 = "10.0.0.1:7"', "peer.listen", "is not loopback"),
        (SECRET, "short", "security.secret", "shorter than 16 bytes"),
        ("secret =", "secret_file =", "security.secret_file", "No such file or directory; make it"),
        ("secret =", 'secret_file = "x"\nsecret =', "security.secret", "not both"),
        ("secret =", 'peer_ca = "node.toml"\nsecret =', "security.peer_cert", "go together"),
    ],
)
def test_a_changed_line_gets_one_line_that_names_the_option(
    write: Write, old: str, new: str, option: str, reason: str
) -> None:
    """Each way to spoil an existing line is named with its option and a reason."""
    assert old in MINIMAL
    with pytest.raises(ConfigError) as caught:
        load(write(MINIMAL.replace(old, new)))
    assert f"node.toml: {option}" in str(caught.value)
    assert reason in str(caught.value)


def test_several_nodes_need_to_know_each_other(write: Write) -> None:
    """Without a secret and without TLS anybody on the machine could pose as a peer."""
    text = THREE.replace(f'secret = "{SECRET}"', "")
    with pytest.raises(ConfigError, match=r"security\.secret_file: is missing"):
        load(write(text))


def test_two_nodes_at_one_address_are_refused(write: Write) -> None:
    """A copied line that was not edited is caught before two nodes fight for a port."""
    with pytest.raises(ConfigError, match=r"cluster\.nodes\.n2: .* already the address of n1"):
        load(write(THREE.replace("7002", "7001")))


def test_insecure_says_it_in_so_many_words(write: Write) -> None:
    """With insecure = true an address off loopback is accepted without TLS and tokens."""
    text = MINIMAL + 'insecure = true\n[http]\nlisten = "0.0.0.0:8000"\n'
    assert load(write(text)).http_listen == ("0.0.0.0", 8000)


def test_off_loopback_is_accepted_with_tls_and_a_token(write: Write) -> None:
    """TLS and one token open the HTTP door; peers may stay on loopback."""
    tls = '[http]\nlisten = "0.0.0.0:8000"\ntls_cert = "node.toml"\ntls_key = "node.toml"\n'
    config = load(write(MINIMAL + TOKEN + tls))
    assert config.security.tokens[0].role == "read"
    with pytest.raises(ConfigError, match=r"\[\[security\.tokens\]\]"):
        load(write(MINIMAL + tls))


def test_a_secret_that_others_may_read_is_refused(write: Write, tmp_path: Path) -> None:
    """A world-readable secret is no secret; the line says what to do."""
    secret = tmp_path / "s"
    secret.write_text(SECRET)
    secret.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        load(write(MINIMAL.replace(f'secret = "{SECRET}"', 'secret_file = "s"')))


def test_a_file_that_others_may_read_must_not_hold_the_secret(write: Write) -> None:
    """Also where the secret stands in node.toml itself."""
    file = write(MINIMAL)
    for mode in (0o644, 0o640, 0o602):
        file.chmod(mode)
        with pytest.raises(ConfigError, match=rf"security\.secret: .* \(mode {mode:04o}\); chmod"):
            load(file)


@pytest.mark.parametrize("table", ["http", "security"])
def test_a_key_that_everybody_may_read_is_refused(table: str, write: Write, tmp_path: Path) -> None:
    """A group may: keys of a machine are often kept for one."""
    for name in ("ca.crt", "n1.crt", "n1.key"):
        (tmp_path / name).write_text("PEM")
    files = {
        "http": '[http]\ntls_cert = "n1.crt"\ntls_key = "n1.key"\n',
        "security": 'peer_ca = "ca.crt"\npeer_cert = "n1.crt"\npeer_key = "n1.key"\n',
    }
    file, key = write(MINIMAL + files[table]), tmp_path / "n1.key"
    option = {"http": "http.tls_key", "security": "security.peer_key"}[table]
    key.chmod(0o644)
    with pytest.raises(ConfigError, match=rf"{option}: .*n1\.key: others may read it .*chmod 640"):
        load(file)
    key.chmod(0o640)
    load(file)


def test_a_node_without_peers_wants_a_secret_too(write: Write) -> None:
    """Said when the file is read and with its option: ``init`` would pass and ``serve`` refuse."""
    with pytest.raises(ConfigError, match=r"security\.secret_file: is missing"):
        load(write(MINIMAL.replace(f'secret = "{SECRET}"', "")))


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    """A missing, a binary and an unreadable (directory) file are each one line."""
    with pytest.raises(ConfigError, match=r"No such file or directory \(--config or RAFTKV_CONFIG"):
        load(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"a = \xff")
    with pytest.raises(ConfigError, match="not UTF-8 at byte 4"):
        load(tmp_path / "binary.toml")
    with pytest.raises(ConfigError, match="Is a directory"):
        load(tmp_path)


def test_the_secret_is_not_in_the_repr(write: Write) -> None:
    """Configurations end up in logs and tracebacks."""
    assert SECRET not in repr(load(write(MINIMAL)))


@pytest.mark.parametrize(
    ("text", "loopback"),
    [
        ("127.8.8.8:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("localhost.example:1", False),
        ("10.1.1.1:1", False),
    ],
)
def test_what_counts_as_loopback(text: str, loopback: bool) -> None:  # noqa: FBT001 -- parametrized
    """Only addresses that other machines cannot reach; names other than localhost do not."""
    address = parse_address("here", text)
    assert address.is_loopback is loopback
    assert str(address) == text
    assert isinstance(address, Address)


@pytest.mark.parametrize(
    ("old", "new", "value"),
    [
        ("http.max_value_bytes", "value_bytes_max", 2048),
        ("http.max_connections", "connections_max", 77),
        ("limits.entry_commands", "entry_operations_max", 9),
        ("limits.entry_bytes", "entry_bytes_max", 2**17),
        ("limits.queue_commands", "waiting_operations_max", 10),
        ("limits.queue_bytes", "waiting_bytes_max", 2**21),
    ],
)
def test_the_old_name_of_an_option_is_read_with_a_warning_and_never_beside_the_new(
    write: Write, caplog: pytest.LogCaptureFixture, old: str, new: str, value: int
) -> None:
    """An old name does what it did and one warning says the new one; both at once are refused."""
    table, _, name = old.partition(".")
    given = f"{MINIMAL}\n[{table}]\n{name} = {value}\n"
    config = load(write(given))
    assert getattr(getattr(config, table), new) == value
    [warning] = caplog.messages
    assert f"{old} is called {table}.{new} now" in warning

    caplog.clear()
    load(write(given.replace(name, new)))
    assert not caplog.messages
    with pytest.raises(ConfigError, match=rf"{old}: is the old name of {table}\.{new}"):
        load(write(f"{given}{new} = {value}\n"))
