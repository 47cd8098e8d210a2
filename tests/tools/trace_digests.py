"""Did a change leave the simulated world as it was? The digest of each seed's trace, a line a seed.

    python tests/tools/trace_digests.py 0 150 > before      # on the commit before
    python tests/tools/trace_digests.py 0 150 | diff before -

Equal lines mean that the same things happened at the same times; one more draw from a seed, one
message more, or another order changes them. A third number is minutes a seed (5).
"""

import sys
from multiprocessing import Pool

from raftkv.sim.options import Options
from raftkv.sim.run import run


def digest(seed: int) -> str:
    """Run one seed: its number, the digest of its trace, and what was violated, if anything."""
    report = run(Options.of(seed, MINUTES))
    return f"{seed} {report.digest} {report.violation or ''}".rstrip()


if __name__ == "__main__":
    FIRST, END = int(sys.argv[1]), int(sys.argv[2])
    MINUTES = float(sys.argv[3]) if len(sys.argv) > 3 else 5.0
    with Pool() as processes:
        for line in processes.imap(digest, range(FIRST, END)):
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
