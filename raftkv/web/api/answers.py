"""What bodies of answers hold, for the OpenAPI document.

They are declared as those of requests are (:mod:`raftkv.web.api.schemas`), and the tests hold
every answer against them. :mod:`raftkv.web.api.responses` makes the answers.
"""

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from raftkv.core.operations import REVISION_LIMIT
from raftkv.web.api.problems import KINDS

Count = Annotated[int, Meta(ge=0)]
Version = Annotated[int, Meta(ge=1)]
Revision = Annotated[int, Meta(ge=1, lt=REVISION_LIMIT)]
Code = Annotated[str, Meta(extra_json_schema={"enum": sorted(KINDS)})]


class _Closed(Struct, forbid_unknown_fields=True):
    """Base of all; there is no member that is not declared."""


class Problem(_Closed):
    """What went wrong, as RFC 9457 has it."""

    type: str
    title: str
    status: int
    code: Code
    detail: str
    definite: bool
    retry_after_ms: Count | UnsetType = UNSET
    revision: int | UnsetType | None = UNSET
    born_after: Count | UnsetType = UNSET


class Put(_Closed):
    """The key was set."""

    key: bytes
    revision: Revision
    version: Version


class Delete(_Closed):
    """Whether there was something to delete; if so, the delete's revision."""

    deleted: bool
    revision: Revision | None


class KeyValue(_Closed):
    """A key with its value, unless keys only were asked for."""

    key: bytes
    revision: Revision
    create_revision: Revision
    version: Count
    value: bytes | UnsetType = UNSET


class Page(_Closed):
    """Entries in the order of keys; cursor is null on the last page."""

    entries: list[KeyValue]
    cursor: str | None


class _Result(_Closed, tag_field="op", kw_only=True):
    status: Literal[200, 201]


class ResultPut(_Result, tag="put"):
    """The key was set."""

    revision: Revision
    version: Version


class ResultDelete(_Result, tag="delete"):
    """Whether there was something to delete; if so, the delete's revision."""

    deleted: bool
    revision: Revision | None


class ResultGet(_Result, tag="get"):
    """The entry; null if there is none."""

    entry: KeyValue | None


class ResultRange(_Result, tag="range"):
    """Entries in the order of keys, and whether the limit left some out."""

    entries: list[KeyValue]
    more: bool


class Ready(_Closed):
    """Whether the node can serve, and what keeps it from that."""

    ready: bool
    failing: list[str]
    checks: list[dict[str, Any]]


class Nodes(_Closed):
    """Every node."""

    nodes: list[dict[str, Any]]


class Shards(_Closed):
    """Every shard."""

    shards: list[dict[str, Any]]


DECLARED: tuple[type[Struct], ...] = (Problem, Put, Delete, KeyValue, Page, Ready, Nodes, Shards)
BATCH_RESULTS: tuple[type[Struct], ...] = (ResultPut, ResultDelete, ResultGet)
TXN_RESULTS: tuple[type[Struct], ...] = (*BATCH_RESULTS, ResultRange)
