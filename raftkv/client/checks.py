"""What makes no sense to send is refused here, in the terms of whoever calls."""

from collections.abc import Iterable, Sequence

from raftkv.client.errors import InvalidRequestError
from raftkv.client.types import (
    KEY_BYTES_MAX,
    REVISION_MAX,
    Bytes,
    Compare,
    Delete,
    Get,
    Put,
    to_bytes,
)


def check_key(key: Bytes) -> bytes:
    """The key as bytes.

    Raises:
        InvalidRequestError: No server takes a key of this length.
        TypeError: It is neither bytes nor text.
    """
    data = to_bytes(key)
    if not 1 <= len(data) <= KEY_BYTES_MAX:
        raise InvalidRequestError(f"a key has 1 to {KEY_BYTES_MAX} bytes, not {len(data)}")
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


def check_operations(operations: Iterable[object], of: str) -> None:
    """Check what a batch or a transaction is made of.

    Raises:
        TypeError: Something in it is no operation.
    """
    for operation in operations:
        if not isinstance(operation, Put | Delete | Get):
            found = type(operation).__name__
            raise TypeError(f"a {of} is made of Put, Delete and Get, not {found}")


def check_batch(operations: Sequence[Put | Delete | Get]) -> None:
    """Check all operations of a batch, before the first one is sent.

    Raises:
        InvalidRequestError: A condition asks for a revision that no entry can have.
        TypeError: Something in it is no operation, or a revision no number.
    """
    check_operations(operations, "batch")
    for operation in operations:
        if not isinstance(operation, Get):
            check_revision(operation.if_revision)


def check_comparisons(comparisons: Iterable[object]) -> None:
    """Check the conditions of a transaction.

    Raises:
        TypeError: Something in them is no comparison.
    """
    for comparison in comparisons:
        if not isinstance(comparison, Compare):
            found = type(comparison).__name__
            raise TypeError(f"the conditions of a transaction are Compare, not {found}")
