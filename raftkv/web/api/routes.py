"""The data routes, once, for both carriers: what exists, who may use it, and what it takes.

The Flask application and the async lane both ask this table, so that a route cannot exist in
one of them only or ask for another role there.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

from raftkv.rpc.web_config import Limits, Role
from raftkv.web.api.bodies import parse_batch, parse_txn
from raftkv.web.api.cursors import Cursors
from raftkv.web.api.exchange import HttpRequest
from raftkv.web.api.limits import BodyLimit, value_limit, values_limit
from raftkv.web.api.problems import HttpError
from raftkv.web.api.requests import (
    Plan,
    ScanStream,
    parse_delete,
    parse_get,
    parse_put,
    parse_scan,
)

KEY_PREFIX = b"/v1/kv/"

_LEADING_ZEROS_MAX = 20
"""A Content-Length may have some, but not so many that it takes long to read."""

Parse = Callable[[HttpRequest, Limits], Plan | ScanStream]


class Action(NamedTuple):
    """One method of one route. ``label`` names it in metrics; without a limit no body is read.

    ``role`` is what it wants at least, before its body is read.
    """

    label: str
    role: Role
    parse: Parse
    body: BodyLimit | None


class Route(NamedTuple):
    """One data route; ``allow`` is the value of the ``Allow`` header."""

    actions: Mapping[str, Action]
    allow: bytes

    def action(self, method: str) -> Action:
        """Return the action for ``method``.

        Raises:
            HttpError: 405, saying what is allowed.
        """
        action = self.actions.get(method)
        if action is None:
            raise method_not_allowed(method, self.allow)
        return action


class DataRoutes:
    """The data routes under one worker's limits, with its cluster's cursors."""

    def __init__(self, limits: Limits, cursors: Cursors) -> None:
        get = Action("kv_get", "read", parse_get, None)
        scan = Action("kv_scan", "read", functools.partial(parse_scan, cursors), None)
        self.key = _route(
            GET=get,
            HEAD=get._replace(label="kv_head"),
            PUT=Action("kv_put", "write", parse_put, value_limit(limits)),
            DELETE=Action("kv_delete", "write", parse_delete, None),
        )
        self.exact = {
            b"/v1/kv": _route(GET=scan, HEAD=scan),
            b"/v1/batch": _route(
                # Operations that write want more: Plan.role.
                POST=Action(
                    "batch", "read", parse_batch, values_limit(limits.batch_bytes_max, limits)
                )
            ),
            b"/v1/txn": _route(
                POST=Action("txn", "write", parse_txn, values_limit(limits.txn_bytes_max, limits))
            ),
        }


def _route(**actions: Action) -> Route:
    return Route(actions, ", ".join(actions).encode())


def method_not_allowed(method: str, allow: bytes) -> HttpError:
    """Return the error for a method that a route does not have."""
    return HttpError(
        "method_not_allowed",
        f"{method} is not allowed here",
        headers=((b"allow", allow),),
    )


def declared_length(headers: Mapping[bytes, bytes], limit: BodyLimit) -> int | None:
    """Return how many bytes the body has by its own account; None if it does not say.

    Raises:
        HttpError: 413 if they are too many, before any of them is read; 400 for no number.
    """
    declared = headers.get(b"content-length")
    if declared is None:
        return None
    if not declared.isdigit():
        raise HttpError("invalid", "bad Content-Length")
    digits_max = len(str(limit.bytes_max)) + _LEADING_ZEROS_MAX
    if len(declared) > digits_max or (length := int(declared)) > limit.bytes_max:
        raise too_large(limit)
    # Where both are given, the length means nothing (RFC 9112, section 6.3).
    return None if b"transfer-encoding" in headers else length


def too_large(limit: BodyLimit) -> HttpError:
    """Return the error for a body over its limit; the rest of it is never read."""
    return HttpError(
        "too_large",
        f"the body is larger than {limit.bytes_max} bytes" + (limit.advice and f": {limit.advice}"),
        headers=((b"connection", b"close"),),
    )
