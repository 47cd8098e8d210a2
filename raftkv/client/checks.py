"""What makes no sense to send is refused here, in the terms of whoever calls."""

import ssl
from collections.abc import Iterable, Sequence
from typing import get_args

from raftkv.client.errors import InvalidRequestError
from raftkv.client.types import (
    KEY_BYTES_MAX,
    REVISION_MAX,
    BatchOperation,
    Bytes,
    Compare,
    to_bytes,
)


def check_token(token: str | None) -> None:
    """Check that a token can be in a header; the error does not show it.

    Raises:
        ValueError: It cannot.
    """
    if token is not None and not (token.isascii() and token.isprintable()):
        raise ValueError("the token has characters that a token cannot have")


def check_ca(ca: str | None) -> None:
    """Check the file of a CA now: at a connection a bad one would look like a broken cluster.

    Raises:
        ValueError: It has no certificates, or cannot be read.
    """
    if ca is None:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=ca)
    except OSError as error:  # ssl.SSLError is one, and says nothing that helps
        raise ValueError(f"{ca}: no PEM certificate of a CA") from error


def check_key(key: Bytes) -> bytes:
    """The key as bytes.

    Raises:
        InvalidRequestError: No server takes a key of this length.
        TypeError: It is neither bytes nor text.
    """
    data = to_bytes(key)
    if not 1 <= len(data) <= KEY_BYTES_MAX:
        error = InvalidRequestError(f"a key has 1 to {KEY_BYTES_MAX} bytes, not {len(data)}")
        error.key = data
        raise error
    return data


def check_revision(revision: object) -> None:
    """Check the revision of a condition; None is no condition.

    Raises:
        InvalidRequestError: No entry can have it. Elsewhere 0 means "absent", so the error of 0
            says what does here.
        TypeError: It is no number.
    """
    if revision is None:
        return
    if isinstance(revision, bool) or not isinstance(revision, int):
        raise TypeError(f"a revision is an int, not {type(revision).__name__}")
    if revision == 0:
        raise InvalidRequestError(
            "no entry has revision 0; put_if_absent(), or if_absent=True, writes only if the key "
            "does not exist"
        )
    if not 0 < revision <= REVISION_MAX:
        raise InvalidRequestError(f"a revision is from 1 to {REVISION_MAX}, not {revision}")


def check_operations(operations: Iterable[object], of: str, union: object) -> None:
    """Check that what a batch or a transaction is made of is in ``union``.

    Raises:
        TypeError: Something in it is no operation.
    """
    kinds: tuple[type, ...] = get_args(union)
    for operation in operations:
        if not isinstance(operation, kinds):
            *most, last = (kind.__name__ for kind in kinds)
            found = type(operation).__name__
            raise TypeError(f"a {of} is made of {', '.join(most)} and {last}, not {found}")


def check_batch(operations: Sequence[BatchOperation]) -> None:
    """Check all operations of a batch, before the first one is sent.

    Raises:
        InvalidRequestError: A condition asks for a revision that no entry can have.
        TypeError: Something in it is no operation, or a revision no number.
    """
    check_operations(operations, "batch", BatchOperation)
    for operation in operations:
        try:
            check_revision(getattr(operation, "if_revision", None))
        except InvalidRequestError as error:
            error.key = to_bytes(operation.key)
            raise


def check_comparisons(comparisons: Iterable[object]) -> None:
    """Check the conditions of a transaction.

    Raises:
        TypeError: Something in them is no comparison.
    """
    for comparison in comparisons:
        if not isinstance(comparison, Compare):
            found = type(comparison).__name__
            raise TypeError(f"the conditions of a transaction are Compare, not {found}")
