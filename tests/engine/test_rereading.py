"""What a running node takes over from its configuration, and what it leaves."""

import shutil
from pathlib import Path

import pytest
from msgspec.structs import replace

from raftkv.cli.certs import make_certificates
from raftkv.engine.config import (
    ClusterOptions,
    HttpOptions,
    InvalidOption,
    LogOptions,
    NodeConfig,
    NodeOptions,
    SecurityOptions,
    TokenOptions,
    check,
)
from raftkv.engine.rereading import digests, merge, reread
from raftkv.engine.security import SecurityError

TOKEN = TokenOptions(role="read", sha256="0" * 64, name="reporting")
CONFIG = NodeConfig(
    cluster=ClusterOptions(id="c", nodes={"n1": "127.0.0.1:1"}, replicas=1),
    node=NodeOptions(name="n1", data_dir="data"),
    security=SecurityOptions(secret="s" * 32),
)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of one CA, for one node."""
    directory = tmp_path_factory.mktemp("certificates")
    make_certificates(directory, {"n1": ["127.0.0.1"]})
    return directory


def secured(certificates: Path) -> NodeConfig:
    """With TLS for peers and clients."""
    of = {"cert": str(certificates / "n1.crt"), "key": str(certificates / "n1.key")}
    return replace(
        CONFIG,
        http=HttpOptions(tls_cert=of["cert"], tls_key=of["key"]),
        security=SecurityOptions(
            peer_ca=str(certificates / "ca.crt"), peer_cert=of["cert"], peer_key=of["key"]
        ),
    )


def test_tokens_and_log_are_taken_over_and_all_else_is_left() -> None:
    """What is left is named, and waits for a restart."""
    new = replace(
        CONFIG,
        cluster=replace(CONFIG.cluster, shards=9),
        http=HttpOptions(workers=3, allowed_hosts=("db.example",)),
        log=LogOptions(level="debug", format="json"),
        security=SecurityOptions(secret="t" * 32, tokens=(TOKEN,)),
    )
    config, taken, left = merge(CONFIG, new)
    assert set(taken) == {"http.allowed_hosts", "log.level", "log.format", "security.tokens"}
    assert set(left) == {"cluster.shards", "http.workers", "security.secret"}
    assert config.security == replace(CONFIG.security, tokens=(TOKEN,))
    assert config.log == new.log
    assert config.cluster == CONFIG.cluster
    assert config.http == replace(CONFIG.http, allowed_hosts=("db.example",))
    assert merge(CONFIG, CONFIG) == (CONFIG, (), ())


def test_links_do_not_change_their_kind(certificates: Path) -> None:
    """With TLS or without it is agreed by all nodes, so it waits for a restart."""
    config, taken, left = merge(CONFIG, secured(certificates))
    assert config.security.peer_ca is None
    assert "security.peer_ca" in left
    assert "http.tls_cert" in taken


def test_new_contents_of_a_certificate_are_seen(certificates: Path, tmp_path: Path) -> None:
    """The option has not changed, its file has."""
    directory = tmp_path / "certs"
    shutil.copytree(certificates, directory)
    config = secured(directory)
    before = digests(config)
    make_certificates(directory, {"n1": ["127.0.0.1"]})
    after = reread(config, config).files
    changed = {option for option in before if before[option] != after[option]}
    assert {"http.tls_cert", "security.peer_cert"} <= changed
    assert "security.peer_ca" not in changed


@pytest.mark.parametrize("name", ["n1.crt", "n1.key", "ca.crt"])
def test_what_is_bad_is_refused_before_anything_changes(
    name: str, certificates: Path, tmp_path: Path
) -> None:
    """Half of a copied file, say."""
    directory = tmp_path / "certs"
    shutil.copytree(certificates, directory)
    path = directory / name
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(SecurityError):
        reread(secured(certificates), secured(directory))


def test_a_door_that_waits_for_a_restart_keeps_its_locks(certificates: Path) -> None:
    """What is put together is checked as a whole: half of a good configuration may open a door."""
    old = secured(certificates)
    old = replace(
        old,
        http=replace(old.http, listen="0.0.0.0:8080"),
        security=replace(old.security, tokens=(TOKEN,)),
    )
    check(old)
    new = replace(
        old,
        http=HttpOptions(listen="127.0.0.1:8080"),
        security=replace(old.security, tokens=()),
    )
    check(new)
    with pytest.raises(InvalidOption, match=r"http\.listen"):
        reread(old, new)
