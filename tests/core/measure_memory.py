"""Measure what a key costs: ``python tests/core/measure_memory.py [--keys N] [--overwrite]``.

Fills a state machine as the engine does, from decoded batches of 64 puts, in its own process, and
prints how much resident memory grew per key beyond the key and the value. ``--overwrite`` writes
every key a second time, which costs each its own create revision.
"""

import argparse
import gc
import time
from pathlib import Path

import mmh3

from raftkv.core.batches import decode_batch, encode_batch
from raftkv.core.operations import BATCH_FORMAT, Batch, Command, Put
from raftkv.core.shard.machine import StateMachine

_BATCH = 64


def resident_bytes() -> int:
    """Return this process's resident memory by the kernel's account."""
    fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return int(fields[1]) * 4096


def fill(state: StateMachine, keys: int, value_bytes: int) -> None:
    """Put ``keys`` keys of 16 bytes, in an order unlike that of the index."""
    for first in range(0, keys, _BATCH):
        commands = tuple(
            Command(Put(mmh3.mmh3_x64_128_digest(b"%d" % number), bytes(value_bytes)))
            for number in range(first, min(first + _BATCH, keys))
        )
        batch = Batch(BATCH_FORMAT, 1, time.time_ns() // 1000, commands)
        state.apply(decode_batch(encode_batch(batch)))


def main() -> None:
    """Fill, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--value-bytes", type=int, default=100)
    parser.add_argument("--overwrite", action="store_true")
    options = parser.parse_args()
    state = StateMachine(1, lambda _key: True)
    gc.collect()
    before = resident_bytes()
    begun = time.perf_counter()
    for _ in range(2 if options.overwrite else 1):
        fill(state, options.keys, options.value_bytes)
    seconds = time.perf_counter() - begun
    gc.collect()
    growth = resident_bytes() - before
    beyond = (growth - state.bytes_total) / state.key_count
    print(f"{state.key_count:,} keys in {seconds:.1f} s")  # noqa: T201 -- a command's output
    print(f"resident memory grew by {growth / 2**20:,.0f} MiB")  # noqa: T201 -- same
    print(f"per key beyond key and value: {beyond:,.0f} bytes")  # noqa: T201 -- same


if __name__ == "__main__":
    main()
