"""How long the judge takes: ``.venv/bin/python tests/tools/measure_check.py``.

Prints the figures of docs/histories.md, in processor time. The histories are of 20 clients that
hardly pause, and 2 % of the operations have an unknown outcome; ``stale`` ones end with a read of
what was replaced long ago.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

from raftkv.check.checker import check
from raftkv.check.history import Operation, guess_format, read_history
from raftkv.check.models import MODELS
from tests.check.sequential import linearizable_history

RECORDED = Path(__file__).parents[1] / "check" / "histories"
BUDGET_S = 300.0


def judge(title: str, model: str, operations: Sequence[Operation]) -> None:
    """Print a line of the table."""
    started_s = time.process_time()
    result = check(operations, MODELS[model], budget_s=BUDGET_S)
    took_ms = (time.process_time() - started_s) * 1000
    sys.stdout.write(
        f"{title:36}{len(operations):>9,} operations {took_ms:>9,.1f} ms  {result.verdict}\n"
    )
    sys.stdout.flush()


def stale(operations: list[Operation]) -> list[Operation]:
    """Let the last read that saw something see what the first one saw."""
    reads = [op for op in operations if op.f == "read" and op.result is not None]
    reads[-1].result, reads[-1].fields = reads[0].result, reads[0].fields
    return operations


def main() -> None:
    """Print all."""
    for path in sorted(RECORDED.glob("kv/*.txt")):
        judge(path.name, "kv", read_history(path, guess_format(path)))
    for path in sorted(RECORDED.glob("jepsen-etcd/*9.log")):
        judge(path.name, "cas-register", read_history(path, guess_format(path)))
    for size in (1_000, 10_000, 100_000):
        history = linearizable_history(
            "register", Random(1), operations=size, clients=20, unknown=0.02
        )
        judge("register", "register", history)
        judge("register, stale", "register", stale(history))


if __name__ == "__main__":
    main()
