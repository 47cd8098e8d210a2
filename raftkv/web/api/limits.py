"""What bounds a request's body and an operator's patience."""

from typing import NamedTuple

from raftkv.rpc.web_config import Limits

OPERATOR_TIMEOUT_MS = 750
"""An engine answers within 0.7 s whatever has become of its peers; one that takes longer is silent,
which operators want to hear within about a second. Who wants to wait longer says so."""


class BodyLimit(NamedTuple):
    """How many bytes a body may have, and what to do about one that has more."""

    bytes_max: int
    advice: str = ""


def value_limit(limits: Limits) -> BodyLimit:
    """Return the limit of a body that is one value."""
    return BodyLimit(limits.value_bytes_max, "http.value_bytes_max of the node sets this limit")


def values_limit(configured: int, limits: Limits) -> BodyLimit:
    """Return the limit of a body of many values: one value always fits, in base64 too."""
    return BodyLimit(
        max(configured, 2 * limits.value_bytes_max), "put fewer operations into a request"
    )
