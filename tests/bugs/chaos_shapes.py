"""In which runs of chaos a seeded bug is likely to do harm, and which bugs chaos cannot see."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raftkv.chaos.settings import Settings

CHAOS_QUICK: dict[str, Any] = {
    "shards": 1,
    "workload": "register",
    "faults": ("kill", "pause", "partition"),
    "election_timeout_ms": 500,
    "recover_s": 60.0,
}
"""One shard, so that every fault meets it, and rounds of a few seconds."""

_SMALL_SNAPSHOTS = {"snapshot_after_entries": 20}

_FIVE_REPLICAS = {"nodes": 5, "replicas": 5}

_DEPOSED_LEADER = {
    "faults": ("partition", "pause"),
    "election_timeout_ms": 1500,
    "clients": 150,
    "rate_per_s": 200.0,
}
"""A leader knows late that it is none any more, and has clients who have not tried to write."""

CHAOS_SHAPES: dict[str, dict[str, Any]] = {
    "h3_wipe_log_at_start": {"faults": ("kill", "storm"), **_SMALL_SNAPSHOTS},
    "snapshot_of_a_moving_state": {"faults": ("kill", "storm"), **_SMALL_SNAPSHOTS},
    # Without snapshots: all of the log counts.
    "h19_emptied_disk_is_let_in": {"faults": ("wipe",)},
    "unchecked_log": {"faults": ("bitflip",), "snapshot_after_entries": 100_000},
    "h1_snapshot_piece_commits": {"faults": ("partition", "pause"), **_SMALL_SNAPSHOTS},
    "h2_stock": {"faults": ("kill", "slow", "partition"), "rate_per_s": 300.0},
    "h2_mended_at_acknowledgement": {"faults": ("slow", "lossy", "kill"), "rate_per_s": 300.0},
    "h2_trimmed_without_clamping": {"rate_per_s": 300.0},
    "h6_failed_snapshot_is_acknowledged": {"faults": ("disk", "partition"), **_SMALL_SNAPSHOTS},
    "h7_older_snapshot_is_installed": _SMALL_SNAPSHOTS | {"faults": ("reset", "kill", "storm")},
    "h11_votes_are_counted_twice": _FIVE_REPLICAS | {"faults": ("partition", "slow", "kill")},
    "forget_votes": _FIVE_REPLICAS | {"faults": ("storm", "slow", "kill")},
    "vote_for_shorter_logs": {"faults": ("kill", "partition")},
    "commit_without_majority": {"faults": ("partition", "kill")},
    "reads_without_confirmation": _DEPOSED_LEADER,
    "reads_before_own_no_op": {"faults": ("kill", "storm", "slow"), "rate_per_s": 300.0},
    "forget_outcomes_in_snapshots": {"faults": ("kill", "reset"), **_SMALL_SNAPSHOTS},
    "unknown_is_called_definite": {"faults": ("slow", "lossy")},
    "repeat_any_write": {"faults": ("kill", "reset"), "rate_per_s": 300.0},
    "lose_messages_quietly": _SMALL_SNAPSHOTS,
    "wrong_shard": {"shards": 4, "faults": ()},
    "apply_twice": {"faults": ()},
    "reply_of_an_earlier_life": {
        "faults": ("forwarder",),
        "election_timeout_ms": 5000,
        "clients": 300,
        "rate_per_s": 200.0,
    },
    "answer_before_commit": {"faults": ("partition", "kill")},
}
"""Settings of a run by chaos that differ from :data:`CHAOS_QUICK`."""

_NEEDS_POWER_LOSS = "only lost power shows it: the kernel writes what a killed process gave to it"

BEYOND_CHAOS: dict[str, str] = {
    "no_fdatasync": _NEEDS_POWER_LOSS,
    "acknowledge_before_sync": _NEEDS_POWER_LOSS,
    "h9_leader_counts_unsynced": _NEEDS_POWER_LOSS,
    "unsynced_names": _NEEDS_POWER_LOSS,
    "age_of_a_heartbeat": "no workload of chaos makes stale reads, the only ones that tell an age",
}
"""Bugs that runs of chaos cannot show, and why."""


def settings_for(
    name: str, out: Path, seed: int, duration_s: float, command: Sequence[str]
) -> Settings:
    """A run in which this bug is likely to do harm."""
    shape = CHAOS_QUICK | CHAOS_SHAPES.get(name, {})
    return Settings(out=out, seed=seed, duration_s=duration_s, command=command, **shape)
