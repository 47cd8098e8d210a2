"""Forms that change something: proof that they were filled in on a page of this node.

A browser sends a cookie, and HTTP Basic credentials, along with whatever another site makes it
send. So the form carries a token that only this node's own page can have shown: a MAC over the
cookie's random value, the credentials and what the form does, under a key that the workers of a
node share. Where the browser says which site the request comes from, that has to fit as well.
"""

import hashlib
import hmac
import secrets
from urllib.parse import urlsplit

from werkzeug.datastructures import Headers

from raftkv.web.api.problems import HttpError

COOKIE = "raftkv_form"
_NONCE_BYTES = 16
_NONCE_DIGITS = 2 * _NONCE_BYTES


class FormGuard:
    """Issues and checks the tokens of forms.

    Args:
        secret: What the workers of a node share and nobody else has; without one this process
            makes its own, and its forms come back to it only.
    """

    def __init__(self, secret: bytes) -> None:
        self._key = hashlib.sha256(b"raftkv forms\0" + (secret or secrets.token_bytes(32))).digest()

    def nonce(self, cookie: str | None) -> str:
        """Return the cookie's value if it is one of ours, else a new one."""
        if cookie is not None and _is_nonce(cookie):
            return cookie
        return secrets.token_hex(_NONCE_BYTES)

    def token(self, nonce: str, credentials: str | None, purpose: str) -> str:
        """Return what the form has to carry."""
        said = "\0".join((nonce, credentials or "", purpose)).encode("utf-8", "surrogateescape")
        return hmac.new(self._key, said, hashlib.sha256).hexdigest()

    def check(self, headers: Headers, cookie: str | None, token: str | None, purpose: str) -> None:
        """Return if the request was made by our own page for this purpose.

        Raises:
            HttpError: 403, with what to do.
        """
        site = headers.get("Sec-Fetch-Site", "same-origin")
        origin = headers.get("Origin")
        same = origin is None or urlsplit(origin).netloc == headers.get("Host")
        expected = self.token(cookie or "", headers.get("Authorization"), purpose)
        proven = cookie is not None and _is_nonce(cookie) and token is not None
        if not (
            proven
            and same
            and site == "same-origin"
            and hmac.compare_digest(expected.encode(), (token or "").encode())
        ):
            raise HttpError(
                "forbidden", "the form did not come from this node's page: open it again"
            )


def _is_nonce(text: str) -> bool:
    return len(text) == _NONCE_DIGITS and all(c in "0123456789abcdef" for c in text)
