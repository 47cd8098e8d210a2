"""The pages off loopback: over TLS, to whoever logs in with a token, in a real browser."""

import base64
from collections.abc import Iterator
from contextlib import AbstractContextManager
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from raftkv.testing.ports import PortReservation
from tests.support.browser import Browser, chromium
from tests.support.secure_nodes import Place, SecureNodes

pytestmark = pytest.mark.cluster

NAMES = ("n1", "n2", "n3")


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureNodes]:
    """Three nodes as their operators would make them; the tests look at n1."""
    reservation = PortReservation(2 * len(NAMES))
    ports = reservation.ports
    places = {
        name: Place("127.0.0.1", ports[number], ports[number + len(NAMES)])
        for number, name in enumerate(NAMES)
    }
    with SecureNodes(tmp_path_factory.mktemp("secure"), places) as running:
        running.wait_ready()
        yield running
    reservation.release()


def trusting(nodes: SecureNodes, profile: Path) -> AbstractContextManager[Browser]:
    """A browser that trusts the key of n1, as one into which the CA was imported would."""
    certificate = x509.load_pem_x509_certificate((nodes.certs / "n1.crt").read_bytes())
    key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    pin = base64.b64encode(sha256(key).digest()).decode()
    return chromium(profile, f"--ignore-certificate-errors-spki-list={pin}")


def log_in(browser: Browser, nodes: SecureNodes, role: str) -> None:
    """Say once what the browser's dialog asks for."""
    browser.look()
    credentials = f"https://anybody:{nodes.tokens[role]}@"
    browser.open(nodes.url("n1").replace("https://", credentials) + "/")
    browser.wait(lambda: "Live." in browser.text("#seen"))


def test_whoever_may_do_everything(nodes: SecureNodes, tmp_path: Path) -> None:
    """All pages are live, and the button works; the browser has nothing to complain about."""
    with trusting(nodes, tmp_path) as browser, nodes.client() as client:
        log_in(browser, nodes, "admin")
        for path in ("/nodes/n2", "/ring", "/explain/a", "/shards/0"):
            browser.open(nodes.url("n1") + path)
            browser.wait(lambda: "Live." in browser.text("#seen"))
            assert browser.violations() == []
        leader = client.shards()["shards"][0]["leader"]
        target = next(name for name in NAMES if name != leader)
        browser.click("a[data-dialog]")
        browser.wait(lambda: browser.run("return document.querySelector('dialog')?.open"))
        browser.click(f"dialog option[value={target}]")
        browser.click("dialog button.primary")
        browser.wait(lambda: f"Led by {target}" in browser.text("#summary"))
        assert browser.complaints() == []


def test_whoever_may_only_read(nodes: SecureNodes, tmp_path: Path) -> None:
    """Sees the same pages, and is told why leadership cannot be moved, and what to do."""
    with trusting(nodes, tmp_path) as browser:
        log_in(browser, nodes, "read")
        browser.open(nodes.url("n1") + "/shards/0")
        browser.click("a[data-dialog]")
        browser.wait(lambda: "This needs a token with role 'admin'" in browser.text())
        assert "private window" in browser.text()
        assert browser.violations() == []
