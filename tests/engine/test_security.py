"""What is refused for safety, and what the handshake makes of arbitrary bytes."""

import codecs
import datetime as dt
import os
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PrivateFormat
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from raftkv.cli.certs import make_certificates
from raftkv.engine import security
from raftkv.engine.config import Address, SecurityOptions
from raftkv.engine.handshake import (
    Acceptor,
    Dialer,
    FactsDiffer,
    HandshakeError,
    LinkHello,
    Refusal,
)
from raftkv.engine.security import (
    LinkSecurity,
    SecurityError,
    certificate_names,
    check_addresses,
    check_http_certificate,
    link_security,
    peer_contexts,
)

SECRET = b"the secret of this test"
N1 = LinkHello("c", "n1", "identity of n1")
N2 = LinkHello("c", "n2", "identity of n2")
FACTS = {"cluster.nodes": "n1,n2", "cluster.replicas": "2"}
HERE = Address("127.0.0.1", 7000)


def sides(secret: bytes | None = SECRET, certified: bool = False) -> tuple[Dialer, Acceptor]:  # noqa: FBT001, FBT002 -- of a test
    """Return both sides of a handshake between n1 and n2."""
    dialer = Dialer(
        N1, os.urandom(32), peer="n2", secret=secret, certified=["n2"] if certified else None
    )
    acceptor = Acceptor(
        N2,
        os.urandom(32),
        dialers=["n1"],
        secret=secret,
        certified=["n1"] if certified else None,
    )
    return dialer, acceptor


@pytest.mark.parametrize(("secret", "certified"), [(SECRET, False), (None, True), (SECRET, True)])
def test_both_sides_learn_who_the_other_is(secret: bytes | None, certified: bool) -> None:  # noqa: FBT001 -- a parameter
    """By secret, by certificate, or by both."""
    dialer, acceptor = sides(secret, certified)
    assert acceptor.receive_hello(dialer.receive_challenge(acceptor.challenge())) == N1
    assert dialer.receive_welcome(acceptor.welcome()) == N2
    assert acceptor.receive_ready(dialer.ready()) == N1
    dialer.receive_accepted(acceptor.accepted())


def sides_with(theirs: dict[str, str], secret: bytes | None = SECRET) -> tuple[Dialer, Acceptor]:
    """Return both sides of a handshake: n1 goes by ``theirs``, n2 by the facts of this test."""
    by_tls = secret is None
    one, two = LinkHello("c", "n1", "i1", theirs), LinkHello("c", "n2", "i2", FACTS)
    first, second = os.urandom(32), os.urandom(32)
    dialer = Dialer(one, first, peer="n2", secret=secret, certified=["n2"] if by_tls else None)
    acceptor = Acceptor(
        two, second, dialers=["n1"], secret=secret, certified=["n1"] if by_tls else None
    )
    return dialer, acceptor


@pytest.mark.parametrize("secret", [SECRET, None])
def test_facts_that_differ_are_named_on_both_sides(secret: bytes | None) -> None:
    """Each compares what the other has proven to go by, and is told nothing it must believe."""
    dialer, acceptor = sides_with({**FACTS, "cluster.replicas": "1"}, secret)
    acceptor.receive_hello(dialer.receive_challenge(acceptor.challenge()))
    with pytest.raises(FactsDiffer, match=r"cluster\.replicas is 2 there and 1 here") as caught:
        dialer.receive_welcome(acceptor.welcome())
    assert caught.value.answer is not None
    with pytest.raises(FactsDiffer, match=r"cluster\.replicas is 1 there and 2 here"):
        acceptor.receive_ready(caught.value.answer)


def test_facts_that_agree_are_told() -> None:
    """So that it can be counted who agrees."""
    dialer, acceptor = sides_with(FACTS)
    acceptor.receive_hello(dialer.receive_challenge(acceptor.challenge()))
    assert dialer.receive_welcome(acceptor.welcome()).facts == FACTS
    assert acceptor.receive_ready(dialer.ready()).facts == FACTS


def test_a_stranger_reads_no_facts() -> None:
    """Whoever is dialed, or dials, gets them only after it has proven itself."""
    dialer, acceptor = sides_with(FACTS)
    told = acceptor.challenge() + dialer.receive_challenge(acceptor.challenge())
    assert not any(text.encode() in told for text in (*FACTS, FACTS["cluster.nodes"]))
    _, stranger = sides_with(FACTS, b"not the secret at all")
    with pytest.raises(HandshakeError, match="does not know"):
        dialer.receive_welcome(_welcomed(stranger))
    with pytest.raises(RuntimeError):
        dialer.ready()


def _welcomed(stranger: Acceptor) -> bytes:
    """The welcome of an acceptor with another secret, which some dialer of its own got."""
    own = Dialer(N1, os.urandom(32), peer="n2", secret=b"not the secret at all")
    stranger.receive_hello(own.receive_challenge(stranger.challenge()))
    return stranger.welcome()


@given(flip=st.integers(min_value=0))
def test_no_bit_of_the_facts_can_be_changed(flip: int) -> None:
    """Nobody in between makes two nodes believe that they differ."""
    dialer, acceptor = sides_with(FACTS)
    acceptor.receive_hello(dialer.receive_challenge(acceptor.challenge()))
    welcome = acceptor.welcome()
    dialer.receive_welcome(welcome)
    for payload, receive in (
        (dialer.ready(), acceptor.receive_ready),
        (welcome, dialer.receive_welcome),
    ):
        changed = bytearray(payload)
        at = flip % (len(changed) * 8)
        changed[at // 8] ^= 1 << at % 8
        with pytest.raises(HandshakeError) as caught:
            receive(bytes(changed))
        assert not isinstance(caught.value, FactsDiffer)


STRANGE_WORDS = "n2\n2026-01-01 ERROR forged"


@pytest.mark.parametrize("proof", [b"", bytes(32)])
def test_the_words_of_a_stranger_are_not_repeated(proof: bytes) -> None:
    """Whoever answers at the address of a peer may refuse, but not write into this node's log."""
    dialer, acceptor = sides()
    dialer.receive_challenge(acceptor.challenge())
    refusal = msgspec.msgpack.encode(Refusal(STRANGE_WORDS, proof))
    with pytest.raises(HandshakeError, match="refuses this node, and does not prove") as caught:
        dialer.receive_welcome(refusal)
    assert "forged" not in str(caught.value)


@pytest.mark.parametrize(("secret", "certified"), [(SECRET, False), (None, True), (SECRET, True)])
def test_a_proven_peer_says_why_it_refuses(secret: bytes | None, certified: bool) -> None:  # noqa: FBT001 -- a parameter
    """An operator finds the reason in the log of the node that is refused."""
    dialer, acceptor = sides(secret, certified)
    acceptor.receive_hello(dialer.receive_challenge(acceptor.challenge()))
    with pytest.raises(HandshakeError, match="refuses this node: it came back"):
        dialer.receive_welcome(acceptor.refusal("it came back"))


def test_a_node_that_is_in_no_list_here_differs() -> None:
    """By its own list of nodes it dials this one: whose list is right is what has to be settled."""
    alone = LinkHello("c", "n2", "i2", {"cluster.nodes": "n2"})
    acceptor = Acceptor(alone, os.urandom(32), dialers=[], secret=SECRET)
    dialer, _ = sides_with(FACTS)
    with pytest.raises(FactsDiffer, match=r"'n1' is not a node.* whose cluster\.nodes is n2$"):
        acceptor.receive_hello(dialer.receive_challenge(acceptor.challenge()))


def test_a_dialer_of_another_protocol_says_so() -> None:
    """The acceptor could not tell it from a port scanner else; its own log names both versions."""
    dialer, acceptor = sides()
    newer = bytearray(acceptor.challenge())
    newer[2] = 99
    with pytest.raises(HandshakeError) as caught:
        dialer.receive_challenge(bytes(newer))
    assert caught.value.answer is not None
    said = bytearray(caught.value.answer)
    said[2] = 3
    with pytest.raises(HandshakeError, match="speaks link protocol 3, this node speaks 2"):
        acceptor.receive_hello(bytes(said))


def test_the_secret_is_never_sent() -> None:
    """What travels are nonces, names and proofs."""
    dialer, acceptor = sides()
    sent = [acceptor.challenge()]
    sent.append(dialer.receive_challenge(sent[0]))
    acceptor.receive_hello(sent[1])
    sent.append(acceptor.welcome())
    dialer.receive_welcome(sent[2])
    sent.append(dialer.ready())
    acceptor.receive_ready(sent[3])
    sent.append(acceptor.accepted())
    assert not any(SECRET in payload for payload in sent)


def test_a_proof_cannot_be_sent_back() -> None:
    """An acceptor without the secret gains nothing by reflecting the dialer's proof."""
    dialer, acceptor = sides()
    hello = dialer.receive_challenge(acceptor.challenge())
    acceptor.receive_hello(hello)
    # Welcome has the hello's own proof in the place of the acceptor's.
    proof = hello[-32:]
    forged = acceptor.welcome()[:-32] + proof
    with pytest.raises(HandshakeError, match="does not know"):
        dialer.receive_welcome(forged)


@given(flip=st.integers(min_value=0))
def test_no_bit_of_a_hello_can_be_changed(flip: int) -> None:
    """Names, identity and nonce are all under the proof."""
    dialer, acceptor = sides()
    hello = bytearray(dialer.receive_challenge(acceptor.challenge()))
    flip %= len(hello) * 8
    hello[flip // 8] ^= 1 << flip % 8
    with pytest.raises(HandshakeError):
        acceptor.receive_hello(bytes(hello))


@given(flip=st.integers(min_value=0))
def test_no_bit_of_a_welcome_can_be_changed(flip: int) -> None:
    """The same in the other direction: the identity that gets stored is the proven one."""
    dialer, acceptor = sides()
    acceptor.receive_hello(dialer.receive_challenge(acceptor.challenge()))
    welcome = bytearray(acceptor.welcome())
    flip %= len(welcome) * 8
    welcome[flip // 8] ^= 1 << flip % 8
    with pytest.raises(HandshakeError):
        dialer.receive_welcome(bytes(welcome))


@given(data=st.binary(max_size=500))
def test_arbitrary_bytes_are_a_handshake_error_at_every_step(data: bytes) -> None:
    """And never anything else."""
    dialer, acceptor = sides()
    with pytest.raises(HandshakeError):
        acceptor.receive_hello(data)
    with pytest.raises(HandshakeError):
        dialer.receive_challenge(data)
    acceptor.receive_hello(dialer.receive_challenge(acceptor.challenge()))
    with pytest.raises(HandshakeError):
        dialer.receive_welcome(data)
    with pytest.raises(HandshakeError):
        acceptor.receive_ready(data)
    with pytest.raises(HandshakeError):
        dialer.receive_accepted(data)


def test_another_link_protocol_is_named() -> None:
    """An upgrade that is half done says so in words."""
    dialer, acceptor = sides()
    challenge = bytearray(acceptor.challenge())
    challenge[2] = 99  # [tag, protocol, nonce]
    with pytest.raises(HandshakeError, match="speaks link protocol 99, this node speaks 2"):
        dialer.receive_challenge(bytes(challenge))


def test_a_hello_for_another_node_is_refused() -> None:
    """Addresses that are mixed up in the configuration do not link the wrong nodes."""
    _, acceptor = sides()
    lost = Dialer(N1, os.urandom(32), peer="n3", secret=SECRET)
    with pytest.raises(HandshakeError, match="looks for node 'n3', this is 'n2'") as caught:
        acceptor.receive_hello(lost.receive_challenge(acceptor.challenge()))
    assert caught.value.proven


def test_something_must_prove_a_peer() -> None:
    """No secret and no TLS is refused when it is configured, and again at the door."""
    with pytest.raises(SecurityError, match="secret or mutual TLS"):
        LinkSecurity()
    with pytest.raises(SecurityError, match="shorter than 16 bytes"):
        LinkSecurity(secret=b"short")
    with pytest.raises(ValueError, match="secret or TLS"):
        sides(None)
    with pytest.raises(ValueError, match="shorter"):
        sides(b"short")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "db.example", "fe80::1"])
def test_addresses_off_loopback_need_tls(host: str) -> None:
    """To listen there and to dial there; the one-line error names the options."""
    there = Address(host, 7000)
    plain = LinkSecurity(secret=SECRET)
    for listen, peers in ((there, []), (HERE, [there])):
        with pytest.raises(SecurityError, match=r"security\.peer_ca.*insecure = true"):
            check_addresses(listen, peers, plain)
        check_addresses(listen, peers, LinkSecurity(secret=SECRET, insecure=True))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_needs_only_the_secret(host: str) -> None:
    """Nobody but this machine can get there."""
    check_addresses(Address(host, 7000), [Address(host, 7001)], LinkSecurity(secret=SECRET))


def test_tls_lifts_the_refusal(tmp_path: Path) -> None:
    """Options become contexts; with them any address will do."""
    make_certificates(tmp_path, {"n1": ["10.1.2.3"]})
    options = SecurityOptions(
        peer_ca=str(tmp_path / "ca.crt"),
        peer_cert=str(tmp_path / "n1.crt"),
        peer_key=str(tmp_path / "n1.key"),
    )
    security = link_security(options)
    assert security.secret is None
    check_addresses(Address("10.1.2.3", 7000), [], security)


def test_unusable_key_files_are_named(tmp_path: Path) -> None:
    """Missing, garbled, or not belonging together: one line each, with the file."""
    make_certificates(tmp_path, {"n1": ["127.0.0.1"], "n2": ["127.0.0.1"]})
    ca, certificate, key = (tmp_path / name for name in ("ca.crt", "n1.crt", "n1.key"))
    garbage = tmp_path / "garbage"
    garbage.write_text("not PEM")
    missing = tmp_path / "missing"
    for bad, files in (
        (missing, (missing, certificate, key)),
        (garbage, (garbage, certificate, key)),
        (missing, (ca, missing, key)),
        (garbage, (ca, certificate, garbage)),
        (certificate, (ca, certificate, tmp_path / "n2.key")),
    ):
        with pytest.raises(SecurityError) as caught:
            peer_contexts(*files)
        assert str(bad) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_only_dns_names_of_a_certificate_are_node_names() -> None:
    """A node is not known by its address or common name, and nobody has no names."""
    certificate = {
        "subject": ((("commonName", "n9"),),),
        "subjectAltName": (("DNS", "n1"), ("IP Address", "10.0.0.1"), ("DNS", "*.example")),
    }
    assert certificate_names(certificate) == {"n1", "*.example"}
    assert certificate_names(None) == certificate_names({}) == frozenset()


def self_signed(directory: Path, key: CertificateIssuerPrivateKeyTypes) -> tuple[Path, Path]:
    """Write a certificate of this key, and the key."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "n1")])
    now = dt.datetime.now(dt.UTC)
    algorithm = None if isinstance(key, Ed25519PrivateKey | Ed448PrivateKey) else hashes.SHA256()
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + dt.timedelta(days=1))
        .sign(key, algorithm)
    )
    paths = directory / "crt.pem", directory / "key.pem"
    paths[0].write_bytes(made.public_bytes(Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths


@pytest.mark.parametrize(
    ("key", "name"),
    [
        (ec.generate_private_key(ec.SECP521R1()), "P-521"),
        (ec.generate_private_key(ec.SECP256K1()), "secp256k1"),
        (Ed448PrivateKey.generate(), "Ed448"),
    ],
    ids=["P-521", "secp256k1", "Ed448"],
)
def test_a_key_that_only_openssl_takes_is_refused_by_name(
    key: CertificateIssuerPrivateKeyTypes, name: str, tmp_path: Path
) -> None:
    """The workers' TLS is another, and they would end as often as they were started."""
    with pytest.raises(SecurityError, match=rf"http\.tls_key: .*private key.*the key is {name};"):
        check_http_certificate(*self_signed(tmp_path, key))


def test_a_certificate_behind_a_byte_order_mark_is_refused(tmp_path: Path) -> None:
    """As an editor leaves it; OpenSSL reads over it."""
    certificate, key = self_signed(tmp_path, ec.generate_private_key(ec.SECP256R1()))
    certificate.write_bytes(codecs.BOM_UTF8 + certificate.read_bytes())
    with pytest.raises(SecurityError, match="cannot use them: NoCertificatesPresented"):
        check_http_certificate(certificate, key)


@pytest.mark.parametrize(
    "key",
    [ec.generate_private_key(ec.SECP384R1()), Ed25519PrivateKey.generate()],
    ids=["P-384", "Ed25519"],
)
def test_keys_that_the_workers_take(key: CertificateIssuerPrivateKeyTypes, tmp_path: Path) -> None:
    """They are tried with a handshake."""
    check_http_certificate(*self_signed(tmp_path, key))


def test_a_certificate_that_cannot_be_tried_is_not_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """That there is no process for it just now is no fault of theirs."""
    monkeypatch.setattr(security, "TRY_HTTP_TLS", (str(tmp_path / "nothing"),))
    check_http_certificate(*self_signed(tmp_path, ec.generate_private_key(ec.SECP256R1())))
    assert "could not be tried" in caplog.text
