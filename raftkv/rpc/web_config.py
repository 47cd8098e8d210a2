"""Settings of one HTTP worker process, as its engine hands them over.

They arrive as one JSON object on a file descriptor, never in the arguments or the environment:
both of those can be read by other users of the machine, and the engine's token is among them.
"""

from typing import Annotated, Literal

import msgspec

Role = Literal["read", "write", "admin"]


class TokenHash(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A bearer token as it is kept: only its SHA-256, in lower-case hexadecimal.

    A token is random and long (``raftkv`` makes them), so a plain fast hash is enough: there is no
    dictionary to try.
    """

    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    role: Role
    name: str = ""


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that bounds a worker: what is over a bound is refused, not queued."""

    value_bytes_max: int = 2**20
    batch_bytes_max: int = 8 * 2**20
    batch_operations_max: int = 10_000
    txn_bytes_max: int = 2 * 2**20
    txn_operations_max: int = 128
    operator_body_bytes_max: int = 2**16
    scan_limit_default: int = 100
    scan_limit_max: int = 10_000
    page_bytes_max: int = 2**20
    timeout_ms_default: int = 5_000
    timeout_ms_max: int = 60_000
    body_timeout_s: float = 30.0
    """From the first wait for a body to its last byte; a slower client gets 408."""
    bodies_bytes_max: int = 256 * 2**20
    """Request bodies that one worker holds at any moment, all clients together."""
    in_flight_max: int = 4_096
    """Requests of one worker that wait for the engine at any moment, at the very most."""
    in_flight_min: int = 512
    """So many may always wait; between the two the bound follows the engine's rate."""
    engine_wait_s: float = 0.5
    """How long an accepted request may wait for the engine, about; what would wait longer is
    refused."""
    connections_max: int = 16_384
    """Open connections of one worker; Granian stops accepting beyond."""
    unread_wait_s: float = 30.0
    """For so long a client may read nothing of a large answer before it is given up."""
    unread_bytes_max: int = 256 * 2**20
    """Large answers that one worker holds for clients that have not read them yet."""
    operator_threads: int = 8
    operator_queue_max: int = 64
    """Requests that run in or wait for the threads of the Flask side."""
    probe_threads: int = 4
    """Beside them, for health, readiness and metrics only."""
    stop_grace_s: float = 5.0
    """How long a stopping worker waits for what is in flight."""


class WebConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one HTTP worker needs to know.

    ``listen_fd`` is an inherited listening socket, shared by all workers of a node; without one
    the worker binds ``host`` and ``port`` itself. Without ``tokens`` every request is allowed:
    whether that is acceptable for the address is decided where the node's configuration is read.
    """

    node_name: str
    log_format: Literal["console", "json"] = "console"
    log_level: str = "info"
    slow_request_ms: int = 500
    data_dir: str = ""
    """Where the node keeps its data; operators are shown how much room is left there."""
    engine_socket: str = ""
    engine_token: str = ""
    cursor_key: str = ""
    """What cursors are checked by, in hexadecimal; the same on every node."""
    worker: int = 0
    host: str = "127.0.0.1"
    port: int = 8000
    listen_fd: int | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_client_ca: str | None = None
    hosts: tuple[str, ...] = ()
    """Names of this node; one that begins with a dot stands for all names that end so."""
    certificates: dict[str, str] = {}
    """Files of certificates whose end is shown, by what they are for."""
    tokens: tuple[TokenHash, ...] = ()
    limits: Limits = Limits()
