"""``raftkv certs``: what it writes can be trusted by TLS as it is, and only by its own CA."""

import datetime as dt
import ipaddress
import ssl
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography import x509

from raftkv.cli.certs import CertsError, certs_command, make_certificates


def certs(*arguments: str) -> Result:
    """Run the command."""
    return CliRunner().invoke(certs_command, list(arguments))


def load(file: Path) -> x509.Certificate:
    """Read a certificate."""
    return x509.load_pem_x509_certificate(file.read_bytes())


def handshake(directory: Path, server: str, client: str, host: str) -> None:
    """Do a mutual TLS handshake in memory, as strict as OpenSSL can be."""
    contexts = []
    for name, protocol in ((server, ssl.PROTOCOL_TLS_SERVER), (client, ssl.PROTOCOL_TLS_CLIENT)):
        context = ssl.SSLContext(protocol)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(directory / "ca.crt")
        context.load_cert_chain(directory / f"{name}.crt", directory / f"{name}.key")
        contexts.append(context)
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        contexts[1].wrap_bio(down, up, server_hostname=host),
        contexts[0].wrap_bio(up, down, server_side=True),
    ]
    for _ in range(5):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert all(end.version() == "TLSv1.3" for end in ends)
    assert ends[1].getpeercert()


@pytest.mark.parametrize("host", ["n1", "127.0.0.1", "::1", "db.example"])
def test_certificates_work_for_both_ends_under_every_name(tmp_path: Path, host: str) -> None:
    """The node's name and all its hosts; a strict verifier has nothing to say."""
    result = certs(
        "--out", str(tmp_path), "--node", "n1=127.0.0.1,[::1],db.example", "--node", "n2=127.0.0.1"
    )
    assert result.exit_code == 0, result.output
    handshake(tmp_path, "n1", "n2", host)


def test_what_is_written(tmp_path: Path) -> None:
    """A CA and a pair per node, printed; keys in PKCS#8, readable by the owner only."""
    out = tmp_path / "deep" / "out"
    result = certs("--out", str(out), "--node", "n1=127.0.0.1", "--days", "30")
    names = ["ca.crt", "ca.key", "n1.crt", "n1.key"]
    assert result.output.split() == [str(out / name) for name in names]
    assert sorted(path.name for path in out.iterdir()) == names
    for name in ("ca.key", "n1.key"):
        assert stat.S_IMODE((out / name).stat().st_mode) == 0o600
        assert (out / name).read_text().startswith("-----BEGIN PRIVATE KEY-----\n")
    certificate = load(out / "n1.crt")
    valid = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    assert dt.timedelta(days=30) <= valid < dt.timedelta(days=31)
    names_ = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names_.get_values_for_type(x509.DNSName) == ["n1"]
    assert names_.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address("127.0.0.1")]


def test_run_again_it_keeps_the_ca_and_renews_the_rest(tmp_path: Path) -> None:
    """Old and new certificates trust each other, and nodes can be added."""
    make_certificates(tmp_path, {"n1": ["127.0.0.1"]})
    ca, old = (tmp_path / "ca.crt").read_bytes(), load(tmp_path / "n1.crt")
    assert certs("--out", str(tmp_path), "--node", "n2=127.0.0.1").exit_code == 0
    handshake(tmp_path, "n1", "n2", "127.0.0.1")
    assert certs("--out", str(tmp_path), "--node", "n1=127.0.0.1").exit_code == 0
    assert (tmp_path / "ca.crt").read_bytes() == ca
    assert load(tmp_path / "n1.crt").serial_number != old.serial_number
    handshake(tmp_path, "n1", "n2", "127.0.0.1")


def test_another_ca_is_not_trusted(tmp_path: Path) -> None:
    """Two runs in two directories make two clusters."""
    for name in ("one", "two"):
        make_certificates(tmp_path / name, {"n1": ["127.0.0.1"], "n2": ["127.0.0.1"]})
    for suffix in ("crt", "key"):
        (tmp_path / "two" / f"n2.{suffix}").rename(tmp_path / "one" / f"n2.{suffix}")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tmp_path / "one", "n2", "n1", "127.0.0.1")


def test_no_certificate_outlives_its_ca(tmp_path: Path) -> None:
    """Near the CA's end node certificates get shorter; after it there are none."""
    now = dt.datetime.now(dt.UTC)
    make_certificates(tmp_path, {"n1": ["127.0.0.1"]}, now=now - dt.timedelta(days=3640))
    make_certificates(tmp_path, {"n1": ["127.0.0.1"]}, now=now)
    end = load(tmp_path / "ca.crt").not_valid_after_utc
    assert load(tmp_path / "n1.crt").not_valid_after_utc == end
    with pytest.raises(CertsError, match=r"ca\.crt: has expired"):
        make_certificates(tmp_path, {"n1": ["127.0.0.1"]}, now=now + dt.timedelta(days=11))


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        (["n1"], "is not NAME=HOST"),
        (["n1="], "is not NAME=HOST"),
        (["=127.0.0.1"], "is not NAME=HOST"),
        (["n1=a", "n1=b"], "given twice"),
        (["n1=a,,b"], "'' is neither a host name nor an address"),
        (["n1=a b"], "'a b' is neither"),
        (["n1=*.example"], "is neither"),
        (["../n1=a"], "cannot be the name of a node"),
        (["ca=a"], "cannot be the name of a node"),
        (["n1=n2", "n2=b"], "host 'n2' of node 'n1' is the name of another node"),
    ],
)
def test_mistakes_are_one_clear_error_and_write_nothing(
    tmp_path: Path, nodes: list[str], message: str
) -> None:
    """Names are checked before the first file is written."""
    result = certs("--out", str(tmp_path / "out"), *(f"--node={node}" for node in nodes))
    assert result.exit_code != 0
    assert message in result.output
    assert not (tmp_path / "out").exists()


def test_a_broken_ca_is_named_and_left_alone(tmp_path: Path) -> None:
    """Half a CA, garbage, or a key of another: nothing is replaced."""
    make_certificates(tmp_path / "other", {"n1": ["127.0.0.1"]})
    make_certificates(tmp_path, {"n1": ["127.0.0.1"]})
    key = (tmp_path / "ca.key").read_bytes()
    for content in (b"garbage", (tmp_path / "other" / "ca.key").read_bytes(), None):
        if content is None:
            (tmp_path / "ca.key").unlink()
        else:
            (tmp_path / "ca.key").write_bytes(content)
        before = (tmp_path / "n1.crt").read_bytes()
        with pytest.raises(CertsError, match=r"ca\.key"):
            make_certificates(tmp_path, {"n1": ["127.0.0.1"]})
        assert (tmp_path / "n1.crt").read_bytes() == before
        assert content is None or (tmp_path / "ca.key").read_bytes() == content
    (tmp_path / "ca.key").write_bytes(key)
    make_certificates(tmp_path, {"n1": ["127.0.0.1"]})


def test_an_unusable_directory_is_named(tmp_path: Path) -> None:
    """One line, no trace."""
    (tmp_path / "file").write_text("")
    result = certs("--out", str(tmp_path / "file" / "below"), "--node", "n1=127.0.0.1")
    assert result.exit_code != 0
    assert f"{tmp_path}/file/below: Not a directory" in result.output
