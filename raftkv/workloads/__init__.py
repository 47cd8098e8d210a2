"""Workloads: what clients do, each judged by a model of :mod:`raftkv.check`.

They are generators of what to ask (:mod:`raftkv.workloads.steps`); threads drive them against real
clusters (``chaos``), a loop drives them in a simulation (``sim``).
"""

from collections.abc import Callable, Iterator
from functools import partial

from raftkv.workloads import append, bank, lock, pages, register, sets, txn
from raftkv.workloads.steps import Context, Process, Steps

Workload = Callable[[Process, Context], Steps]

WORKLOADS: dict[str, Workload] = {
    "register": register.register,
    "append": append.append,
    "set": sets.add_to_set,
    "bank": bank.bank,
    "lock": lock.lock,
    "pages": pages.pages,
    "txn": txn.txn,
}

_READS: dict[str, Callable[[Process, Context, str], Steps]] = {
    register.MODEL: register.read,
    append.MODEL: append.read,
    sets.MODEL: sets.read_by_scan,
    bank.MODEL: bank.read,
}


def final_reads(process: Process, context: Context) -> Iterator[tuple[str, Callable[[], Steps]]]:
    """Reads of everything that was ever written, by key: nothing acknowledged may go unseen."""
    for model, read in _READS.items():
        for key in list(context.recorder.keys(model)):
            yield key, partial(read, process, context, key)
