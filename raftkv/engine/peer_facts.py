"""What another node's facts must look like before anything is made of them.

Facts grow from version to version, so only what this version looks into is checked here; the rest
is passed on, for readers who take it or leave it. A peer whose facts do not fit is honest all the
same: its link stays, and it counts as one that does not answer.
"""

from typing import Annotated, Any, Literal, NotRequired, TypedDict

import msgspec

_ROWS_MAX = 65_536
_YEAR_9999_US = 253_402_300_800_000_000

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_Time = Annotated[int, msgspec.Meta(ge=0, lt=_YEAR_9999_US)]
_Name = Annotated[str, msgspec.Meta(max_length=255)]


class _Leadership(TypedDict):
    term: _Count
    leader: _Name | None
    at_us: _Time


class _Follower(TypedDict):
    in_touch: NotRequired[bool | None]


class _Shard(TypedDict):
    """One replica, as :meth:`raftkv.engine.status.LocalStatus.facts` tells of it."""

    shard: _Count
    generation: _Count
    role: Literal["leader", "follower"]
    term: _Count
    applied_index: _Count
    commit_index: NotRequired[_Count | None]
    digest: _Name
    digest_mismatch: NotRequired[bool | None]
    digest_agreed_index: NotRequired[_Count | None]
    leader: NotRequired[_Name | None]
    leader_since_us: NotRequired[_Time | None]
    no_leader_since_us: NotRequired[_Time | None]
    leaders: NotRequired[Annotated[list[_Leadership], msgspec.Meta(max_length=1000)]]
    followers: NotRequired[Annotated[dict[_Name, _Follower], msgspec.Meta(max_length=_ROWS_MAX)]]


class _Event(TypedDict):
    at_us: _Time
    kind: _Name


class _PeerFacts(TypedDict):
    as_of_us: _Time
    nodes: Annotated[list[dict[str, Any]], msgspec.Meta(max_length=_ROWS_MAX)]
    shards: Annotated[list[_Shard], msgspec.Meta(max_length=_ROWS_MAX)]
    events: Annotated[list[_Event], msgspec.Meta(max_length=1000)]
    http: NotRequired[dict[str, Any] | None]
    metrics: NotRequired[dict[str, Any]]


def check_facts(facts: object) -> None:
    """Return if ``facts`` are what this version can put together with those of other nodes.

    Raises:
        msgspec.ValidationError: they are not; it says where.
    """
    msgspec.convert(facts, _PeerFacts)
