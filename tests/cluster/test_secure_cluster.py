"""Off loopback: what must be refused, what must work, and that every door wants its proof."""

import asyncio
import contextlib
import os
import shutil
import socket
import ssl
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import urllib3

from raftkv import Client
from raftkv.client import AccessError, UnavailableError
from raftkv.engine.handshake import NONCE_BYTES, Dialer, LinkHello, Refusal, decode
from raftkv.engine.peer_wire import CHANNEL_CONTROL
from raftkv.rpc.client import EngineClient, EngineUnavailableError
from raftkv.rpc.framing import HEADER_BYTES
from raftkv.rpc.local import CHANNEL_CALL, CHANNEL_HELLO, Hello, socket_address
from raftkv.rpc.messages import Call, StatusRequest
from raftkv.testing.ports import PortReservation
from tests.support.frames import encode_frame
from tests.support.real_command import RAFTKV, TIMEOUT_S, edited, refusal, run
from tests.support.secure_nodes import Place, SecureNodes

pytestmark = pytest.mark.cluster

HOST = "127.0.0.1"
NAMES = ("n1", "n2", "n3")
ADMITTED_S = 10.0
TLS_ALERT = b"\x15"


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureNodes]:
    """Three nodes on loopback with mutual TLS, HTTPS and tokens."""
    ports = PortReservation(6)
    places = {
        name: Place(HOST, ports.ports[number], ports.ports[number + 3])
        for number, name in enumerate(NAMES)
    }
    with SecureNodes(tmp_path_factory.mktemp("secure"), places) as running:
        running.wait_ready()
        yield running
    ports.release()


def test_put_and_get_through_every_node(nodes: SecureNodes) -> None:
    """The client with ca= and token= writes at one node and reads at the others."""
    for name in NAMES:
        with nodes.client(name, role="write") as client:
            client.put(f"from/{name}", name)
    for name in NAMES:
        with nodes.client(name, role="read") as client:
            found = {entry.key.decode(): entry.value.decode() for entry in client.scan("from/")}
        assert found == {f"from/{name}": name for name in NAMES}
    with nodes.client() as client:
        assert all(row["reachable"] for row in client.status("cluster")["nodes"])
    for name in NAMES:
        assert nodes.said(name, "link to", "is up")


def test_command_line_with_ca_and_token(nodes: SecureNodes) -> None:
    """The same by ``raftkv put`` and ``raftkv get``; without a token the code says definite."""
    at = ("--endpoint", nodes.url("n2"), "--ca", nodes.ca)
    token = ("--token", nodes.tokens["write"])
    assert run("put", "cli", "value", *at, *token).returncode == 0
    assert run("get", "cli", *at, *token).stdout == "value"
    refused = run("get", "cli", *at)
    assert (refused.returncode, refused.stderr.count("\n")) == (3, 1)
    assert "token" in refused.stderr


# --- HTTP -----------------------------------------------------------------------------------------


def test_http_wants_a_token_of_the_right_role(nodes: SecureNodes) -> None:
    """None or a wrong one: 401. A reader that writes, a writer that moves leaders: 403."""
    http = urllib3.PoolManager(ca_certs=nodes.ca, retries=False)
    bearer = {role: {"Authorization": f"Bearer {t}"} for role, t in nodes.tokens.items()}
    key, move = "/v1/kv/secret", "/v1/shards/0/transfer-leader"
    wrong = {"Authorization": "Bearer " + "x" * 43}
    for method, path, headers, status in (
        ("GET", key, {}, 401),
        ("PUT", key, {}, 401),
        ("GET", key, wrong, 401),
        ("GET", "/v1/status", {}, 401),
        ("GET", "/metrics", {}, 401),
        ("GET", "/", {}, 401),
        ("POST", "/v1/batch", {}, 401),
        ("PUT", key, bearer["read"], 403),
        ("DELETE", key, bearer["read"], 403),
        ("POST", move, bearer["write"], 403),
        ("PUT", key, bearer["write"], 201),
        ("GET", key, bearer["read"], 200),
    ):
        url = nodes.url("n1") + path
        answer = http.request(method, url, headers=headers, body=b"v" if method == "PUT" else None)
        assert answer.status == status, (method, path, answer.status, answer.data)
        if status in {401, 403}:
            assert answer.json()["definite"] is True
            assert "www-authenticate" in answer.headers
    with nodes.client(role="read") as reader, pytest.raises(AccessError):
        reader.put("secret", "mine")


def test_http_speaks_nothing_but_tls(nodes: SecureNodes) -> None:
    """Plain HTTP gets no answer, and a client without the CA trusts nobody."""
    place = nodes.places["n1"]
    with socket.create_connection((place.host, place.http_port), 5) as plain:
        token = nodes.tokens["admin"]
        head = f"Host: localhost\r\nAuthorization: Bearer {token}\r\n\r\n"
        plain.sendall(b"GET /v1/kv/secret HTTP/1.1\r\n" + head.encode())
        assert b"HTTP" not in rest_of(plain)
    with (
        Client(nodes.url("n1"), token=nodes.tokens["admin"], timeout_s=2) as stranger,
        pytest.raises(UnavailableError, match="certificate"),
    ):
        stranger.put("k", "v")


# --- peer port ------------------------------------------------------------------------------------


def rest_of(connection: socket.socket) -> bytes:
    """Everything that the other side still says before it closes."""
    connection.settimeout(ADMITTED_S)
    received = b""
    with contextlib.suppress(ConnectionResetError, ssl.SSLError, BrokenPipeError):
        while data := connection.recv(4096):
            received += data
    return received


def trusting(nodes: SecureNodes, certificate: Path | None = None) -> ssl.SSLContext:
    """A TLS client that believes everybody, with a certificate if one is given."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if certificate is not None:
        context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    return context


def peer_says(nodes: SecureNodes, name: str, context: ssl.SSLContext | None) -> bytes:
    """What a node's peer port says to a stranger who sends some bytes and waits."""
    place = nodes.places[name]
    with socket.create_connection((place.host, place.peer_port), 5) as plain:
        if context is None:
            plain.sendall(encode_frame(CHANNEL_CONTROL, b"hello"))
            return rest_of(plain)
        try:
            with context.wrap_socket(plain) as secured:
                secured.sendall(encode_frame(CHANNEL_CONTROL, b"hello"))
                return rest_of(secured)
        except (ssl.SSLError, ConnectionError):
            return b""


def other_authority(directory: Path) -> Path:
    """A certificate for n1 by a CA that the cluster knows nothing of."""
    assert run("certs", "--out", directory, "--node", f"n1={HOST}").returncode == 0
    return directory / "n1.crt"


def test_peer_port_says_nothing_to_strangers(nodes: SecureNodes, tmp_path: Path) -> None:
    """Plain TCP, TLS without a certificate, one of another CA: closed without a challenge."""
    assert peer_says(nodes, "n2", None)[:1] in {b"", TLS_ALERT}
    assert peer_says(nodes, "n2", trusting(nodes)) == b""
    foreign = trusting(nodes, other_authority(tmp_path / "other"))
    assert peer_says(nodes, "n2", foreign) == b""
    assert nodes.said("n2", "peer connection refused in its TLS handshake")


class Frames:
    """Reads frames from a blocking socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def next(self) -> bytes | None:
        """The next payload; None once the other side has closed."""
        header = self._exactly(HEADER_BYTES)
        if header is None:
            return None
        return self._exactly(int.from_bytes(header[:4], "little") - 1)

    def _exactly(self, count: int) -> bytes | None:
        data = b""
        while len(data) < count:
            try:
                piece = self._connection.recv(count - len(data))
            except (ConnectionResetError, ssl.SSLError):
                return None
            if not piece:
                return None
            data += piece
        return data


def dial(nodes: SecureNodes, certificate: Path, claimed: str, to: str = "n2") -> bytes | None:
    """Dial a node by the real protocol, claim to be somebody, and return its answer."""
    place = nodes.places[to]
    with (
        socket.create_connection((place.host, place.peer_port), ADMITTED_S) as plain,
        trusting(nodes, certificate).wrap_socket(plain) as connection,
    ):
        frames = Frames(connection)
        challenge = frames.next()
        assert challenge is not None
        dialer = Dialer(
            LinkHello("secure", claimed, "0" * 32),
            os.urandom(NONCE_BYTES),
            peer=to,
            secret=None,
            certified={to},
        )
        connection.sendall(encode_frame(CHANNEL_CONTROL, dialer.receive_challenge(challenge)))
        return frames.next()


def test_peer_port_wants_the_certificate_of_the_name(nodes: SecureNodes) -> None:
    """Whoever has a certificate of the CA is who it says, and no other node, and not a new one."""
    certs = shutil.copytree(nodes.certs, nodes.directory / "more certs")
    assert run("certs", "--out", certs, "--node", f"n9={HOST}").returncode == 0
    assert dial(nodes, certs / "n9.crt", claimed="n1") is None
    assert nodes.said("n2", "claims to be 'n1' with a certificate for n9")
    assert dial(nodes, certs / "n3.crt", claimed="n1") is None
    stranger = dial(nodes, certs / "n9.crt", claimed="n9")
    assert stranger is not None
    assert decode(stranger) == Refusal("'n9' is not a node that dials 'n2'")
    # The certificate of n1 opens the door; that this is not the n1 of before is found behind it.
    answer = dial(nodes, certs / "n1.crt", claimed="n1")
    assert answer is not None
    refusal_step = decode(answer)
    assert isinstance(refusal_step, Refusal)
    assert "n1 came back with another identity" in refusal_step.reason


# --- Unix socket ----------------------------------------------------------------------------------


def test_unix_socket_wants_the_token(nodes: SecureNodes) -> None:
    """Only its owner may open it, and who says nothing, or the wrong thing, gets nothing."""
    path = nodes.data("n1") / "engine.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    call = encode_frame(CHANNEL_CALL, msgspec.msgpack.encode(Call(1, 1000, StatusRequest("local"))))
    empty = encode_frame(CHANNEL_HELLO, msgspec.msgpack.encode(Hello(1, b"")))
    for said in (call, empty + call):
        with (
            socket.socket(socket.AF_UNIX) as connection,
            socket_address(path) as address,
        ):
            connection.connect(address)
            connection.sendall(said)
            assert rest_of(connection) == b""
    with pytest.raises(EngineUnavailableError):
        asyncio.run(EngineClient.connect(path, b"wrong" * 8))
    assert nodes.said("n1", "front end connection closed", "wrong token")
    assert nodes.said("n1", "front end connection closed", "no hello")


def test_all_of_that_has_hurt_nobody(nodes: SecureNodes) -> None:
    """The nodes go on, with the links that they had."""
    with nodes.client() as client:
        client.put("after", "all")
        assert all(row["reachable"] for row in client.status("cluster")["nodes"])
    assert not any(nodes.said(name, "Traceback") for name in NAMES)
    assert not any(nodes.said(name, "link to", "is down") for name in NAMES)


# --- addresses off loopback -----------------------------------------------------------------------

LONELY = """
[cluster]
id = "lonely"
shards = 1
replicas = 1
[cluster.nodes]
n1 = "127.0.0.1:7001"
[node]
name = "n1"
data_dir = "data"
[http]
listen = "127.0.0.1:8000"
[security]
secret = "a secret of enough bytes"
"""
TOKENS = f'[[security.tokens]]\nrole = "read"\nsha256 = "{"0" * 64}"\n'
OPEN_HTTP = ('listen = "127.0.0.1:8000"', 'listen = "0.0.0.0:8000"')
OPEN_PEER = ("[http]", '[peer]\nlisten = "0.0.0.0:7001"\n[http]')
FAR_PEER = ('n1 = "127.0.0.1:7001"', 'n1 = "127.0.0.1:7001"\nn2 = "10.1.2.3:7001"')


@pytest.fixture
def lonely(tmp_path: Path) -> Path:
    """The configuration of one node, made but not run yet."""
    config = tmp_path / "node.toml"
    config.write_text(LONELY)
    config.chmod(0o600)
    assert run("init", "--config", config).returncode == 0
    return config


def test_addresses_off_loopback_are_refused_without_proof(lonely: Path, nodes: SecureNodes) -> None:
    """The option that exposes is named, and those that are missing; half of them is not enough."""
    certs = nodes.certs
    tls = f'tls_cert = "{certs}/n1.crt"\ntls_key = "{certs}/n1.key"'
    peer_tls = f'peer_ca = "{certs}/ca.crt"\npeer_cert = "{certs}/n1.crt"'
    peer_tls += f'\npeer_key = "{certs}/n1.key"'
    http = "http.listen: 0.0.0.0:8000 is not loopback: set http.tls_cert, http.tls_key and "
    for changes, expected in (
        ([OPEN_HTTP], http),
        ([OPEN_HTTP, ("[security]", f"{tls}\n[security]")], http),
        ([OPEN_HTTP, ('enough bytes"\n', f'enough bytes"\n{TOKENS}')], http),
        ([OPEN_HTTP, ("[security]", f"[security]\n{peer_tls}")], http),
        ([OPEN_PEER], "peer.listen: 0.0.0.0:7001 is not loopback: set security.peer_ca, "),
        ([FAR_PEER], "cluster.nodes.n2: 10.1.2.3:7001 is not loopback: set security.peer_ca, "),
        ([('"127.0.0.1:8000"', '"some-name:8000"')], "http.listen: some-name:8000 is not loopback"),
    ):
        with edited(lonely, *changes):
            line = refusal(run("serve", "--config", lonely))
        assert line.startswith(f"{lonely}: {expected}"), line
        assert line.endswith("security.insecure = true"), line


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be alone on a network")
def test_insecure_lets_it(lonely: Path) -> None:
    """Asked for in so many words, a node listens everywhere (here: on a network of its own)."""
    insecure = ("[security]", "[security]\ninsecure = true")
    with edited(lonely, OPEN_HTTP, OPEN_PEER, insecure):
        command = ["unshare", "--net", *RAFTKV, "serve", "--config", str(lonely)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:  # noqa: S603
            assert process.stderr is not None
            try:
                said = next(line for line in process.stderr if "node n1 of cluster" in line)
                assert "http 0.0.0.0:8000, peers 0.0.0.0:7001" in said
            finally:
                process.terminate()
            process.stderr.read()
            assert process.wait(TIMEOUT_S) == 0
