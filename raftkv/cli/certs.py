"""``raftkv certs``: a CA and one certificate per node, for mutual TLS between nodes and for HTTPS.

A node's certificate carries the node's name, by which its peers know it, and its host names and
addresses, by which HTTP clients do. It may be shown by either end of a connection. Run again, the
command keeps the CA and makes new certificates: that is how they are renewed.
"""

import datetime as dt
import ipaddress
import os
import re
from collections.abc import Sequence
from pathlib import Path

import click
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from raftkv.engine.config import NODE_NAME

__all__ = ["CertsError", "certs_command", "make_certificates"]

CA_DAYS = 3650
DAYS = 730

_CLOCKS_APART = dt.timedelta(minutes=10)
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")


class CertsError(Exception):
    """The certificates cannot be made; one line for the operator."""


class _Authority:
    """The CA's certificate and key."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.certificate = certificate
        self.key = key


def make_certificates(
    directory: Path,
    nodes: dict[str, Sequence[str]],
    *,
    days: int = DAYS,
    now: dt.datetime | None = None,
) -> list[Path]:
    """Write ``ca.crt`` and ``ca.key`` if missing, and ``NODE.crt`` and ``NODE.key`` for each node.

    ``nodes`` maps node names to the hosts and addresses under which clients reach them. Keys are
    EC P-256 in PKCS#8, readable by their owner only. Returns the files that were written.

    Raises:
        CertsError: a name cannot be used, or a file cannot be read or written.
    """
    _check_names(nodes)
    now = dt.datetime.now(dt.UTC) if now is None else now
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        authority, written = _authority(directory, now)
        for name, hosts in nodes.items():
            key = ec.generate_private_key(ec.SECP256R1())
            certificate = _node_certificate(
                authority, key, name=name, hosts=hosts, days=days, now=now
            )
            written += _write_pair(directory, name, certificate, key)
    except OSError as error:
        raise CertsError(f"{error.filename or directory}: {error.strerror}") from error
    return written


def _check_names(nodes: dict[str, Sequence[str]]) -> None:
    for name, hosts in nodes.items():
        if not re.fullmatch(NODE_NAME, name) or name.lower() == "ca":
            raise CertsError(f"{name!r} cannot be the name of a node")
        for host in hosts:
            if not _is_address(host) and not _HOST.fullmatch(host):
                raise CertsError(f"{host!r} is neither a host name nor an address")
            if host in nodes and host != name:
                # Whoever has a name in its certificate is taken for the node of that name.
                raise CertsError(f"host {host!r} of node {name!r} is the name of another node")


def _authority(directory: Path, now: dt.datetime) -> tuple[_Authority, list[Path]]:
    """Load the CA, or make one where there is neither its certificate nor its key."""
    certificate_file, key_file = directory / "ca.crt", directory / "ca.key"
    if not certificate_file.exists() and not key_file.exists():
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _ca_certificate(key, now)
        written = _write_pair(directory, "ca", certificate, key)
        return _Authority(certificate, key), written
    try:
        certificate = x509.load_pem_x509_certificate(certificate_file.read_bytes())
        loaded = serialization.load_pem_private_key(key_file.read_bytes(), password=None)
    except (ValueError, TypeError) as error:
        raise CertsError(f"{certificate_file}, {key_file}: not a usable CA: {error}") from error
    if (
        not isinstance(loaded, ec.EllipticCurvePrivateKey)
        or loaded.public_key() != certificate.public_key()
    ):
        raise CertsError(f"{key_file}: is not the key of {certificate_file}")
    if certificate.not_valid_after_utc <= now:
        raise CertsError(f"{certificate_file}: has expired; move it and its key away for a new CA")
    return _Authority(certificate, loaded), []


def _ca_certificate(key: ec.EllipticCurvePrivateKey, now: dt.datetime) -> x509.Certificate:
    serial = x509.random_serial_number()
    # CAs made by two runs differ in their name, or clients mix them up.
    name = _name(f"raftkv CA {serial % 16**8:08x}")
    return (
        _builder(name, name, key.public_key(), now, now + dt.timedelta(days=CA_DAYS))
        .serial_number(serial)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(sign_certificates=True), critical=True)
        .add_extension(_authority_key(key), critical=False)
        .sign(key, hashes.SHA256())
    )


def _node_certificate(
    authority: _Authority,
    key: ec.EllipticCurvePrivateKey,
    *,
    name: str,
    hosts: Sequence[str],
    days: int,
    now: dt.datetime,
) -> x509.Certificate:
    ends = min(now + dt.timedelta(days=days), authority.certificate.not_valid_after_utc)
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    alternatives: list[x509.GeneralName] = [x509.DNSName(name)]
    alternatives += [_general_name(host) for host in dict.fromkeys(hosts) if host != name]
    return (
        _builder(_name(name), authority.certificate.subject, key.public_key(), now, ends)
        .serial_number(x509.random_serial_number())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(_authority_key(authority.key), critical=False)
        .sign(authority.key, hashes.SHA256())
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    begins: dt.datetime,
    ends: dt.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .not_valid_before(begins - _CLOCKS_APART)
        .not_valid_after(ends)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _authority_key(key: ec.EllipticCurvePrivateKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())


def _key_usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _general_name(host: str) -> x509.GeneralName:
    if _is_address(host):
        return x509.IPAddress(ipaddress.ip_address(host))
    return x509.DNSName(host)


def _write_pair(
    directory: Path, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey
) -> list[Path]:
    """Write the key before the certificate: a certificate without its key is of no use."""
    key_file, certificate_file = directory / f"{name}.key", directory / f"{name}.crt"
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    _write(key_file, pem, 0o600)
    _write(certificate_file, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    return [certificate_file, key_file]


def _write(file: Path, content: bytes, mode: int) -> None:
    """Replace ``file`` as a whole; a key is never readable by others, not for a moment."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as out:
            out.write(content)
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _parse_nodes(
    _context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, Sequence[str]]:
    nodes: dict[str, Sequence[str]] = {}
    for value in values:
        name, equals, hosts = value.partition("=")
        if not equals or not name or not hosts:
            raise click.BadParameter(f"{value!r} is not NAME=HOST[,HOST...]")
        if name in nodes:
            raise click.BadParameter(f"node {name!r} is given twice")
        nodes[name] = [host.strip().strip("[]") for host in hosts.split(",")]
    return nodes


@click.command("certs")
@click.option(
    "--out",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Directory for the CA and the certificates; made if missing.",
)
@click.option(
    "--node",
    "nodes",
    multiple=True,
    required=True,
    callback=_parse_nodes,
    metavar="NAME=HOST[,HOST...]",
    help="A node and the host names or addresses under which clients reach it; once per node.",
)
@click.option(
    "--days",
    type=click.IntRange(min=1, max=CA_DAYS),
    default=DAYS,
    show_default=True,
    help="How long the nodes' certificates are valid.",
)
def certs_command(directory: Path, nodes: dict[str, Sequence[str]], days: int) -> None:
    """Make a CA and node certificates for TLS between nodes and for HTTPS.

    A CA that is there already is kept, so the same command renews certificates and adds nodes.
    Keep ca.key away from the nodes: whoever has it can be any node.
    """
    try:
        written = make_certificates(directory, nodes, days=days)
    except CertsError as error:
        raise click.ClickException(str(error)) from error
    for file in written:
        click.echo(file)
