"""Do the replicas of every shard hold the same state, once nobody writes any more?"""

import time
from collections.abc import Mapping
from typing import Any

from raftkv.client import Client, RaftkvError

AGREE_S = 120.0
_POLL_S = 0.2


def disagreements(
    client: Client, timeout_s: float = AGREE_S, *, shards: int | None = None
) -> list[str]:
    """Wait until all replicas have applied the same, and compare their digests.

    One line for each shard that differs, or that never came to rest. ``shards``: how many there
    must be (None: at least one).
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            rows = client.shards()["shards"]
            found = [line for row in rows if (line := _unsettled(row))]
            if not rows or shards not in (None, len(rows)):
                found.append(f"the cluster speaks of {len(rows)} shards, not {shards or 'any'}")
        except RaftkvError as error:
            rows, found = [], [f"the cluster does not say what its replicas hold: {error}"]
        if not found:
            return [line for row in rows if (line := _different(row))]
        if time.monotonic() > deadline:
            return found
        time.sleep(_POLL_S)


def _unsettled(row: Mapping[str, Any]) -> str:
    """Why the replicas of a shard cannot be compared yet; empty if they can."""
    members = row.get("members", {})
    missing = sorted(set(row["replicas"]) - set(members))
    if missing:
        return f"shard {row['shard']}: no word of the replica on {', '.join(missing)}"
    applied = {name: member["applied_index"] for name, member in members.items()}
    if len(set(applied.values())) > 1:
        return f"shard {row['shard']}: its replicas stay at different entries: {applied}"
    return ""


def _different(row: Mapping[str, Any]) -> str:
    digests = {name: member["digest"] for name, member in row["members"].items()}
    if row.get("digest_mismatch") or len(set(digests.values())) > 1:
        return f"shard {row['shard']}: its replicas differ at the same entry: {digests}"
    return ""
