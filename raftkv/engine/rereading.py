"""What a running node takes over from its configuration when it is read again (SIGHUP)."""

import hashlib
from pathlib import Path
from typing import NamedTuple

import msgspec

from raftkv.engine.config import NodeConfig, check
from raftkv.engine.security import LinkSecurity, check_http_certificate, link_security

REREAD = frozenset(
    {
        "http.allowed_hosts",
        "http.tls_cert",
        "http.tls_key",
        "log.format",
        "log.level",
        "log.slow_request_ms",
        "security.peer_ca",
        "security.peer_cert",
        "security.peer_key",
        "security.tokens",
    }
)
"""Options that a running node takes over. All else is of its data, its place in the cluster, or
its sizes, and waits for a restart."""


class Merged(NamedTuple):
    """A configuration to go on with; ``taken`` and ``left`` name options that differ."""

    config: NodeConfig
    taken: tuple[str, ...]
    left: tuple[str, ...]


class Reread(NamedTuple):
    """What was read again, and tried; ``files`` tells the contents of the certificates apart."""

    merged: Merged
    security: LinkSecurity
    files: dict[str, str]


def merge(old: NodeConfig, new: NodeConfig) -> Merged:
    """Put what may be taken over from ``new`` into ``old``."""
    names = REREAD
    if old.security.peer_tls != new.security.peer_tls:  # another kind of links
        names = names - {"security.peer_ca", "security.peer_cert", "security.peer_key"}
    taken: list[str] = []
    left: list[str] = []
    tables = {}
    for table in NodeConfig.__struct_fields__:
        before, after = getattr(old, table), getattr(new, table)
        changes = {}
        for option in before.__struct_fields__:
            if getattr(before, option) == getattr(after, option):
                continue
            name = f"{table}.{option}"
            if name in names:
                changes[option] = getattr(after, option)
            (taken if name in names else left).append(name)
        tables[table] = msgspec.structs.replace(before, **changes)
    return Merged(NodeConfig(**tables), tuple(taken), tuple(left))


def reread(old: NodeConfig, new: NodeConfig) -> Reread:
    """Merge, and try what was taken over; blocking.

    What was left may be what made the new tokens and certificates right, so that all is checked as
    it is put together: an address that other machines reach must not lose its tokens or TLS.

    Raises:
        InvalidOption: what is taken over does not go with what waits for a restart.
        SecurityError: certificates or keys cannot be used.
    """
    merged = merge(old, new)
    check(merged.config)
    http = merged.config.http
    if http.tls_cert is not None and http.tls_key is not None:
        check_http_certificate(Path(http.tls_cert), Path(http.tls_key))
    return Reread(merged, link_security(merged.config.security), digests(merged.config))


def digests(config: NodeConfig) -> dict[str, str]:
    """Return a digest of each certificate and key by its option; one that is not there has none."""
    found = {}
    for table in ("http", "security"):
        for option in ("tls_cert", "tls_key", "peer_ca", "peer_cert", "peer_key"):
            path = getattr(getattr(config, table), option, None)
            if path is not None and Path(path).is_file():
                found[f"{table}.{option}"] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return found
