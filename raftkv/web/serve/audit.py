"""What operators want to find afterwards: logins that failed, and who moved leadership.

One line each, from the logger ``raftkv.audit``, whatever the log's level: the address, the token's
name, never the token, and the request's id. Failed logins are told once a minute for each address,
with how many there were: guessing must not fill the log, nor hide in it.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from raftkv.web.api.auth import AccessError
from raftkv.web.api.owners import address_of

MINUTE_S = 60.0

ADDRESSES_MAX = 1_000
"""So many addresses are told apart in a minute; all others are counted together."""

_OTHERS = "other addresses"

_logger = logging.getLogger("raftkv.audit")
_logger.setLevel(logging.INFO)


class AuditLog:
    """Writes the lines. The lock guards the counts: requests come from the loop and threads."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._began = monotonic()
        self._failed: dict[str, int] = {}  # in this minute, by address

    def login_failed(self, client: object, error: AccessError, request_id: str) -> None:
        """Note a request without a token that allows it, from ``client`` as ASGI names it."""
        self.tell()
        address = address_of(client)
        with self._lock:
            if len(self._failed) >= ADDRESSES_MAX and address not in self._failed:
                address = _OTHERS
            count = self._failed[address] = self._failed.get(address, 0) + 1
        if count == 1:
            facts = {"address": address, "token": error.token, "request_id": request_id}
            _log("login failed: %s", error.detail, facts)

    def tell(self) -> None:
        """Once a minute is over, say how many more failed in it; call it every now and then."""
        now = self._monotonic()
        with self._lock:
            if now - self._began < MINUTE_S:
                return
            failed, self._failed, self._began = self._failed, {}, now
        for address, count in failed.items():
            if count > 1:
                _log("logins failed: %d in a minute", count, {"address": address})

    def done(
        self, action: str, outcome: str, *, client: object, token: str, request_id: str
    ) -> None:
        """Note something that only an admin may ask for."""
        facts = {"address": address_of(client), "token": token, "request_id": request_id}
        _log("%s", f"{action}: {outcome}", facts)


AUDIT = AuditLog()
"""That of this process."""


def _log(message: str, argument: object, facts: dict[str, Any]) -> None:
    _logger.info(message, argument, extra={"facts": facts})
