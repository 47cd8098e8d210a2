"""Print what the log costs on this disk: buffering, syncing, recovering.

Run: python tests/storage/measure_wal.py [--directory DIR] [--gib 1.0]
"""

import argparse
import gc
import resource
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from raftkv.core.cluster_map import GroupId
from raftkv.storage.disk import RealDisk
from raftkv.storage.wal import Wal

IDENTITY = "measure"
GROUPS = [GroupId(shard, 0) for shard in range(4)]
RULE = "{:<58}{:>12}"


def pump(wal: Wal) -> list[float]:
    """Sync all that is buffered, inline; return the seconds of each sync."""
    seconds = []
    while (job := wal.begin_sync()) is not None:
        start = time.perf_counter()
        job.run()
        wal.finish_sync(job)
        seconds.append(time.perf_counter() - start)
        if (house := wal.begin_housekeeping()) is not None:
            house.run()
            wal.finish_housekeeping(house)
    return seconds


class Filler:
    """Appends entries to the groups in turn."""

    def __init__(self, wal: Wal) -> None:
        self.wal = wal
        self.index = 0
        self.last = dict.fromkeys(GROUPS, 0)

    def append(self, count: int, payload: bytes) -> None:
        """Append ``count`` entries."""
        for _ in range(count):
            group = GROUPS[self.index % len(GROUPS)]
            self.index += 1
            self.last[group] += 1
            self.wal.append(group, self.last[group], 1, payload)


def report(name: str, value: str) -> None:
    """Print one line."""
    print(RULE.format(name, value))  # noqa: T201 -- printing is what this script is for


def measure_appends(filler: Filler) -> None:
    """Cost of buffering a record on the event loop."""
    count = 200_000
    start = time.perf_counter()
    filler.append(count, bytes(200))
    each = (time.perf_counter() - start) / count
    pump(filler.wal)
    report("append of a 200-byte payload, buffered", f"{each * 1e6:.2f} us")


def measure_syncs(filler: Filler) -> None:
    """Latency and throughput for units of different size."""
    for entries in (1, 16, 64, 256):
        units = 400
        seconds: list[float] = []
        start = time.perf_counter()
        for _ in range(units):
            filler.append(entries, bytes(200))
            seconds += pump(filler.wal)
        total = time.perf_counter() - start
        p50, p99 = statistics.median(seconds), statistics.quantiles(seconds, n=100)[98]
        report(f"unit of {entries} entries: median sync", f"{p50 * 1e6:.0f} us")
        report(f"unit of {entries} entries: p99 sync", f"{p99 * 1e6:.0f} us")
        report(f"unit of {entries} entries: entries/s", f"{units * entries / total:,.0f}")


def measure_recovery(directory: Path, size: float, payload_bytes: int) -> None:
    """Time to open a log of ``size`` bytes."""
    disk = RealDisk()
    Wal.create(disk, directory, identity=IDENTITY)
    wal, _ = Wal.open(disk, directory, identity=IDENTITY)
    filler = Filler(wal)
    per_unit = max(1, 256 * 1024 // payload_bytes)
    while filler.index * (payload_bytes + 29) < size:
        filler.append(per_unit, bytes(payload_bytes))
        pump(wal)
    wal.close()
    gc.collect()
    gc.freeze()  # as the engine does: what is recovered is no garbage
    gc.disable()
    start = time.perf_counter()
    wal, recovered = Wal.open(disk, directory, identity=IDENTITY)
    seconds = time.perf_counter() - start
    gc.enable()
    entries = sum(len(group.entries) for group in recovered.values())
    wal.close()
    shutil.rmtree(directory)
    size_gib = size / 2**30
    report(f"recovery of {size_gib:.2f} GiB, {payload_bytes}-byte entries", f"{seconds:.2f} s")
    report("  per entry", f"{seconds / entries * 1e6:.2f} us")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, help="where to put the log (default: /tmp)")
    parser.add_argument("--gib", type=float, default=1.0, help="size of the log to recover")
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="raftkv-wal-", dir=arguments.directory))
    try:
        disk = RealDisk()
        start = time.perf_counter()
        Wal.create(disk, root / "wal", identity=IDENTITY)
        wal, _ = Wal.open(disk, root / "wal", identity=IDENTITY)
        report("create and open an empty log", f"{(time.perf_counter() - start) * 1e3:.1f} ms")
        filler = Filler(wal)
        measure_appends(filler)
        measure_syncs(filler)
        wal.close()
        shutil.rmtree(root / "wal")
        for payload_bytes in (200, 16_384):
            measure_recovery(root / "log", arguments.gib * 2**30, payload_bytes)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        report("peak memory of this process", f"{peak:,.0f} MiB")
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
