"""How peers trust each other: the cluster's secret, mutual TLS, and what is refused without.

A node's certificate carries the node's name as a DNS name; a peer is who its certificate says,
compared exactly. Host names play no part, so nodes may move between machines, and a certificate
with a wildcard stands for no node at all.
"""

import logging
import re
import ssl
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raftkv.core.errors import StartError
from raftkv.engine.config import Address, SecurityOptions
from raftkv.engine.handshake import SECRET_BYTES_MIN
from raftkv.interpreter import PYTHON_M

__all__ = [
    "LinkSecurity",
    "PeerContexts",
    "SecurityError",
    "certificate_names",
    "check_addresses",
    "check_http_certificate",
    "link_security",
    "peer_contexts",
]


TRY_HTTP_TLS = (*PYTHON_M, "raftkv.web.try_tls")

_TRY_DEADLINE_S = 20.0
_RUST_ERROR = re.compile(r"an `Err` value: (?:General\(\"(?=.*\"\)))?(.*?)(?:\"\))?$")
_CURVES = {"secp521r1": "P-521", "secp384r1": "P-384", "secp256r1": "P-256"}

_logger = logging.getLogger(__name__)


class SecurityError(StartError):
    """The configuration would be unsafe, or its keys cannot be used; one line for operators."""


@dataclass(frozen=True, slots=True)
class PeerContexts:
    """Mutual TLS for both directions of dialling."""

    server: ssl.SSLContext
    client: ssl.SSLContext


@dataclass(frozen=True, slots=True)
class LinkSecurity:
    """What proves a peer: the secret, its certificate, or both. ``insecure`` lifts the refusals."""

    secret: bytes | None = field(default=None, repr=False)
    tls: PeerContexts | None = None
    insecure: bool = False

    def __post_init__(self) -> None:
        if self.secret is None and self.tls is None:
            raise SecurityError("peers need a cluster secret or mutual TLS")
        if self.secret is not None and len(self.secret) < SECRET_BYTES_MIN:
            raise SecurityError(f"the cluster secret is shorter than {SECRET_BYTES_MIN} bytes")


def link_security(options: SecurityOptions) -> LinkSecurity:
    """Load what the configuration names.

    Raises:
        SecurityError: a file cannot be used, or nothing would prove a peer.
    """
    tls = None
    if (
        options.peer_ca is not None
        and options.peer_cert is not None
        and options.peer_key is not None
    ):
        tls = peer_contexts(Path(options.peer_ca), Path(options.peer_cert), Path(options.peer_key))
    secret = options.secret.encode() if options.secret else None
    return LinkSecurity(secret=secret, tls=tls, insecure=options.insecure)


def peer_contexts(ca: Path, certificate: Path, key: Path) -> PeerContexts:
    """Make the contexts of peer links: both sides show a certificate of this CA.

    Both ends are raftkv, so nothing older than TLS 1.3 is spoken, and sessions are not resumed:
    every link proves itself anew.

    Raises:
        SecurityError: a file is missing, unreadable or not what it should be.
    """
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False  # the node's name is compared instead, on both sides
    server.num_tickets = 0
    for context in (server, client):
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        _load(context, ca, certificate, key)
    return PeerContexts(server=server, client=client)


def check_http_certificate(certificate: Path, key: Path) -> None:
    """Try what the HTTP workers are going to serve with: they could only fail again and again.

    Blocks for some tenths of a second: OpenSSL says best what is wrong, but their server's TLS is
    another, so that is tried as well, in a process of its own, which it may end.

    Raises:
        SecurityError: a file is missing, unreadable or not what it should be.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _load_pair(context, ("http.tls_cert", certificate), ("http.tls_key", key))
    command = (*TRY_HTTP_TLS, certificate, key)
    try:
        tried = subprocess.run(  # noqa: S603 -- our own
            command, capture_output=True, timeout=_TRY_DEADLINE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:  # no process, or no time: not their fault
        _logger.warning("http.tls_cert and http.tls_key could not be tried: %s", error)
        return
    if tried.returncode != 0:
        said = tried.stderr.decode(errors="replace").strip().splitlines()
        value = next((match[1] for match in map(_RUST_ERROR.search, said) if match), None)
        why = value or (said[-1] if said else f"exit code {tried.returncode}")
        raise SecurityError(
            f"http.tls_cert: {certificate}, http.tls_key: {key}: the HTTP server cannot use them: "
            f"{why} (the key is {_key_kind(key)}; RSA, P-256, P-384 and Ed25519 can be used, and "
            "files in PEM that begin with what they hold)"
        )


def _key_kind(key: Path) -> str:
    """Say in a word what a key is."""
    # Takes its time, and is for mistakes only.
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric.ec import (  # noqa: PLC0415
        EllipticCurvePrivateKey,
    )
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

    try:
        loaded = load_pem_private_key(key.read_bytes(), None)
    except (ValueError, TypeError, OSError, UnsupportedAlgorithm):
        return "of an unknown kind"
    if isinstance(loaded, EllipticCurvePrivateKey):
        return _CURVES.get(loaded.curve.name, loaded.curve.name)
    return type(loaded).__name__.removeprefix("_").removesuffix("PrivateKey")


def _load(context: ssl.SSLContext, ca: Path, certificate: Path, key: Path) -> None:
    try:
        context.load_verify_locations(cafile=ca)
    except OSError as error:  # ssl.SSLError is one; its text does not say which file it means
        why = "no PEM certificate of a CA" if isinstance(error, ssl.SSLError) else error.strerror
        raise SecurityError(f"security.peer_ca: {ca}: {why}") from error
    _load_pair(context, ("security.peer_cert", certificate), ("security.peer_key", key))


def _load_pair(
    context: ssl.SSLContext, certificate: tuple[str, Path], key: tuple[str, Path]
) -> None:
    """Load a certificate and its key, each given as (option, file)."""
    try:
        # An encrypted key would ask for its password on the terminal and hang a service.
        context.load_cert_chain(certificate[1], key[1], password=_no_password)
    except OSError as error:
        names = f"{certificate[0]}: {certificate[1]}, {key[0]}: {key[1]}"
        raise SecurityError(f"{names}: {_why_not_a_pair(error)}") from error


def _no_password() -> str:
    return ""


def _why_not_a_pair(error: OSError) -> str:
    """OpenSSL does not say which of the two files it means."""
    if not isinstance(error, ssl.SSLError):
        return error.strerror or str(error)
    if error.reason == "KEY_VALUES_MISMATCH":
        return "the key does not belong to the certificate"
    return "one of them is no PEM certificate or no PEM key without a password"


def certificate_names(certificate: Mapping[str, Any] | None) -> frozenset[str]:
    """Return the DNS names of a verified peer certificate, as ``getpeercert`` shows it."""
    if not certificate:
        return frozenset()
    names = certificate.get("subjectAltName", ())
    return frozenset(value for kind, value in names if kind == "DNS")


def check_addresses(listen: Address, peers: Iterable[Address], security: LinkSecurity) -> None:
    """Refuse to talk to other machines without TLS.

    The configuration refuses this in the user's words already; this is the door itself, for those
    who build a node without a configuration file.

    Raises:
        SecurityError: an address off loopback without mutual TLS.
    """
    if security.tls is not None or security.insecure:
        return
    for address in (listen, *peers):
        if not address.is_loopback:
            raise SecurityError(
                f"peer address {address} is not loopback and there is no mutual TLS: set "
                "security.peer_ca, peer_cert and peer_key, or security.insecure = true"
            )
