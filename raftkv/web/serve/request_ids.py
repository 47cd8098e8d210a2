"""What a request is called in logs, here, in its engine and on the node that serves it."""

import itertools
import logging
import re
import secrets
from collections.abc import Mapping

HEADER = b"x-request-id"

_fits = re.compile(rb"[A-Za-z0-9._:-]{1,64}").fullmatch

_logger = logging.getLogger(__name__)


class RequestIds:
    """Takes the client's name for a request, or makes one; both are short and harmless."""

    def __init__(self) -> None:
        self._prefix = secrets.token_hex(4)  # unlike that of any other worker
        self._next = itertools.count(1).__next__

    def of(self, headers: Mapping[bytes, bytes]) -> str:
        """Return ``X-Request-Id`` if it may be one, else a name that nobody else has."""
        given = headers.get(HEADER)
        if given is not None and _fits(given):
            return given.decode()
        return f"{self._prefix}-{self._next():x}"


def log_slow(label: str, status: int, took_s: float, request_id: str) -> None:
    """Log a request that took long, from its head to its answer; its engine knows of the rest."""
    took_ms = round(took_s * 1000, 1)
    facts = {"route": label, "status": status, "total_ms": took_ms, "request_id": request_id}
    _logger.warning("slow request: %s, %.1f ms", label, took_ms, extra={"facts": facts})
