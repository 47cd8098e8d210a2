"""What applying an entry of the log did to keys: made only where somebody asks for it."""

from typing import Literal

import msgspec

from raftkv.core.operations import KeyValue

Cause = Literal["client"]
"""Why a key changed. Whatever else will change keys than clients' writes has a word here."""


class Change(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One step of one key.

    The entries are those of the state, not copies. All changes of one command have its revision,
    and a transaction that writes a key twice makes two changes of it.
    """

    key: bytes
    revision: int
    old: KeyValue | None
    """None: the key is new."""
    new: KeyValue | None
    """None: the key is deleted."""
    cause: Cause = "client"
