"""Bearer tokens and their three roles; both carriers ask here before they do anything.

``admin`` may all that ``write`` may, ``write`` all that ``read`` may.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence

from raftkv.rpc.web_config import Role, TokenHash
from raftkv.web.api.problems import HttpError

_RANKS: dict[Role, int] = {"read": 1, "write": 2, "admin": 3}
_TOKEN_BYTES_MAX = 1024


_NO_TOKENS = "(no tokens are set)"


class AccessError(HttpError):
    """A request that no token allows; ``token`` names the one that came, empty if it is unknown."""

    token = ""


class Authenticator:
    """Checks the ``Authorization`` header of a request against the configured tokens.

    Without tokens everything is allowed.
    """

    def __init__(self, tokens: Sequence[TokenHash]) -> None:
        self._tokens = [
            (bytes.fromhex(t.sha256), _RANKS[t.role], t.name or f"{t.role} {t.sha256[:8]}")
            for t in tokens
        ]

    def check(self, authorization: bytes | None, role: Role, *, page: bool = False) -> str:
        """Return the token's name if the request may do what ``role`` may.

        A ``page`` also takes HTTP Basic with the token as the password, because a browser
        cannot send a bearer token. A browser sends it with whatever another site makes it ask
        for, so a page that changes something wants proof of its form as well
        (:mod:`raftkv.web.ops.csrf`), and the API takes bearer tokens only.

        Raises:
            AccessError: 401 without a valid token, 403 with one of too small a role.
        """
        if not self._tokens:
            return _NO_TOKENS
        token = _bearer(authorization)
        if token is None and page:
            token = _basic_password(authorization)
        rank, name = self._rank(token) if token is not None else (0, "")
        if rank == 0:
            raise _unauthorized(page=page, presented=token is not None)
        if rank < _RANKS[role]:
            error = AccessError(
                "forbidden",
                f"this needs a token with role {role!r}",
                headers=((b"www-authenticate", b'Bearer error="insufficient_scope"'),),
            )
            error.token = name
            raise error
        return name

    def _rank(self, token: bytes) -> tuple[int, str]:
        # Every stored hash is compared, whichever matches: the time tells nothing.
        digest = hashlib.sha256(token).digest()
        found = (0, "")
        for stored, rank, name in self._tokens:
            if hmac.compare_digest(stored, digest):
                found = max(found, (rank, name))
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
