"""Who asks, and whether he may: bearer tokens and their three roles.

Both carriers ask :meth:`Access.authorize` about every request, once its route is known and before
its body is read; what a route wants is in the tables of routes.

``admin`` may all that ``write`` may, ``write`` all that ``read`` may.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence
from typing import NamedTuple

from raftkv.rpc.web_config import Role, TokenHash
from raftkv.web.api.problems import HttpError

_RANKS: dict[Role, int] = {"read": 1, "write": 2, "admin": 3}
_TOKEN_BYTES_MAX = 1024


class AccessError(HttpError):
    """A request that no token allows; ``token`` names the one that came, empty if it is unknown."""

    token = ""


class Principal(NamedTuple):
    """Who asks: the token's name, and the rank of its role."""

    name: str
    rank: int

    def require(self, role: Role) -> None:
        """Return if he may do what ``role`` may.

        Raises:
            AccessError: 403, his role is too small.
        """
        if self.rank < _RANKS[role]:
            error = AccessError(
                "forbidden",
                f"this needs a token with role {role!r}",
                headers=((b"www-authenticate", b'Bearer error="insufficient_scope"'),),
            )
            error.token = self.name
            raise error


_ANYBODY = Principal("(no tokens are set)", _RANKS["admin"])
_NOBODY = Principal("", 0)


class Access:
    """Judges requests by their ``Authorization`` header and the configured tokens.

    Without tokens everything is allowed.
    """

    def __init__(self, tokens: Sequence[TokenHash]) -> None:
        self._tokens = [
            (
                bytes.fromhex(t.sha256),
                Principal(t.name or f"{t.role} {t.sha256[:8]}", _RANKS[t.role]),
            )
            for t in tokens
        ]

    def authorize(
        self, authorization: bytes | None, role: Role | None, *, page: bool = False
    ) -> Principal:
        """Return who asks, if he may do what ``role`` may; None is for everybody.

        A ``page`` also takes HTTP Basic with the token as the password, because a browser
        cannot send a bearer token. A browser sends it with whatever another site makes it ask
        for, so a page that changes something wants proof of its form as well
        (:mod:`raftkv.web.ops.csrf`), and the API takes bearer tokens only.

        Raises:
            AccessError: 401 without a valid token, 403 with one of too small a role.
        """
        if not self._tokens:
            return _ANYBODY
        if role is None:
            return _NOBODY
        token = _bearer(authorization)
        if token is None and page:
            token = _basic_password(authorization)
        principal = _NOBODY if token is None else self._principal(token)
        if principal is _NOBODY:
            raise _unauthorized(page=page, presented=token is not None)
        principal.require(role)
        return principal

    def _principal(self, token: bytes) -> Principal:
        # Every stored hash is compared, whichever matches: the time tells nothing.
        digest = hashlib.sha256(token).digest()
        found = _NOBODY
        for stored, principal in self._tokens:
            if hmac.compare_digest(stored, digest) and principal.rank >= found.rank:
                found = principal
        return found


def _unauthorized(*, page: bool, presented: bool) -> AccessError:
    bearer = b'Bearer realm="raftkv"' + (b', error="invalid_token"' if presented else b"")
    challenges = [(b"www-authenticate", bearer)]
    if page:
        challenges.append((b"www-authenticate", b'Basic realm="raftkv", charset="UTF-8"'))
    return AccessError(
        "unauthorized",
        "the token is not known" if presented else "no bearer token came with the request",
        headers=tuple(challenges),
    )


def _bearer(authorization: bytes | None) -> bytes | None:
    if authorization is None or len(authorization) > _TOKEN_BYTES_MAX:
        return None
    scheme, _, token = authorization.partition(b" ")
    return token.strip() or None if scheme.lower() == b"bearer" else None


def _basic_password(authorization: bytes | None) -> bytes | None:
    if authorization is None or len(authorization) > _TOKEN_BYTES_MAX:
        return None
    scheme, _, encoded = authorization.partition(b" ")
    if scheme.lower() != b"basic":
        return None
    try:
        _, _, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
    except (binascii.Error, ValueError):
        return None
    return password or None
