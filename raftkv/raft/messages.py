"""Raft on the wire: a closed list of messages, each with exactly these fields.

Encoded by msgspec as MessagePack arrays with a small tag; the decoder accepts nothing else, and
never runs code from a peer (the stock wire is pickle). Names follow the Raft paper (figure 2) and
dissertation where they have one.

Indexes and terms are bounded by what no cluster comes to. A peer may raise a term only step by
step besides, see ``TERM_STEP_MAX`` in :mod:`raftkv.raft.stock`: a term is durable and spreads, and
a group that has used up its terms can never elect anybody again.
"""

from typing import Annotated

import msgspec

INDEX_MAX = 2**53
"""A million entries a second come to it in 285 years."""

TERM_MAX = 2**53
"""A thousand elections a second come to it in 285,000 years."""

Index = Annotated[int, msgspec.Meta(ge=0, le=INDEX_MAX)]
Term = Annotated[int, msgspec.Meta(ge=0, le=TERM_MAX)]
Bytes = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Number = Annotated[int, msgspec.Meta(ge=0, le=2**62)]


class Wire(msgspec.Struct, array_like=True, frozen=True, gc=False, forbid_unknown_fields=True):
    """Base of every Raft message. ``term`` is the sender's unless said otherwise."""


class AppendEntries(Wire, tag=1, frozen=True):
    """Entries after (``prev_index``, ``prev_term``), as (command, term); none: a heartbeat."""

    term: Term
    prev_index: Index
    prev_term: Term
    commit_index: Index
    entries: tuple[tuple[bytes, Term], ...] = ()


class AppendResponse(Wire, tag=2, frozen=True):
    """``success``: the log matches the leader's below ``next_index``, durably.

    Otherwise the leader should go on at ``next_index``: the log does not match at ``refused``, the
    ``prev_index`` of the append that is answered.
    """

    term: Term
    next_index: Index
    success: bool
    refused: Index = 0


class RequestVote(Wire, tag=3, frozen=True):
    """``transfer``: the leader itself asked for this election, so stickiness does not apply."""

    term: Term
    last_log_index: Index
    last_log_term: Term
    transfer: bool = False


class VoteResponse(Wire, tag=4, frozen=True):
    """A vote granted in ``term``; PySyncObj sends nothing for a vote refused."""

    term: Term


class PreVote(Wire, tag=5, frozen=True):
    """Would you vote for me? (dissertation 9.6). ``term`` is the term the candidate would have."""

    term: Term
    last_log_index: Index
    last_log_term: Term
    round: Number


class PreVoteResponse(Wire, tag=6, frozen=True):
    """Answer to the pre-vote with the same ``round``."""

    term: Term
    round: Number
    granted: bool


class TimeoutNow(Wire, tag=7, frozen=True):
    """Leadership transfer (dissertation 3.10): stand for election at once."""

    term: Term


class HigherTerm(Wire, tag=8, frozen=True):
    """Tells a sender with an older term about ``term``, so that it can step down or catch up."""

    term: Term


class ConfirmLeader(Wire, tag=9, frozen=True):
    """ReadIndex round (dissertation 6.4): am I still the leader of ``term``?"""

    term: Term
    round: Number


class LeaderConfirmed(Wire, tag=10, frozen=True):
    """Yes, in ``term``; ``round`` as asked."""

    term: Term
    round: Number


class FreshnessQuery(Wire, tag=11, frozen=True):
    """A follower asks for the commit index as of now."""

    question: Number


class FreshnessEcho(Wire, tag=12, frozen=True):
    """After a completed quorum round: the commit index read at its start."""

    question: Number
    commit_index: Index


class SnapshotChunk(Wire, tag=13, frozen=True):
    """A piece of the leader's snapshot file at (``index``, ``last_term``), in order."""

    term: Term
    index: Index
    last_term: Term
    size_bytes: Bytes
    offset: Bytes
    data: bytes


class SnapshotProgress(Wire, tag=14, frozen=True):
    """The receiver of a snapshot wants byte ``offset`` of the one at ``index`` next.

    ``in_order`` false: something is missing, send from there again. When it has all of it,
    installing follows, and then an AppendResponse. ``wait_ms`` above 0: it takes none now, for
    want of space say; ask again after so long.
    """

    term: Term
    index: Index
    offset: Bytes
    in_order: bool
    wait_ms: Annotated[int, msgspec.Meta(ge=0, le=600_000)] = 0


class DigestCheck(Wire, tag=15, frozen=True):
    """The sender's state digest when it had applied exactly ``index``."""

    index: Index
    digest: bytes


RaftMessage = (
    AppendEntries
    | AppendResponse
    | RequestVote
    | VoteResponse
    | PreVote
    | PreVoteResponse
    | TimeoutNow
    | HigherTerm
    | ConfirmLeader
    | LeaderConfirmed
    | FreshnessQuery
    | FreshnessEcho
    | SnapshotChunk
    | SnapshotProgress
    | DigestCheck
)


class Envelope(msgspec.Struct, array_like=True, frozen=True, gc=False, forbid_unknown_fields=True):
    """A message for one group; a frame on a peer link carries a list of these."""

    shard: int
    generation: int
    message: RaftMessage
