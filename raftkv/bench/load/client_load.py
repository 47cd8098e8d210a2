"""Load by our Python client: threads that put one key after the other through one client."""

import random
import threading
import time

from raftkv.bench.load.generator import (
    EXAMPLES_KEPT,
    REPORT_EVERY_S,
    Load,
    Progress,
    Recorder,
    begin_together,
    cpu_s,
    read_load,
    write,
)
from raftkv.bench.load.tally import Tally, merged
from raftkv.bench.load.workload import chooser
from raftkv.client import Client, RaftkvError


class _Caller(threading.Thread):
    """One thread of the program that uses the client."""

    def __init__(self, load: Load, client: Client, begin: float, number: int) -> None:
        super().__init__(name=f"caller-{number}", daemon=True)
        self.recorder = Recorder(load, begin)
        self.errors: list[str] = []
        self._load = load
        self._client = client
        self._seed = load.seed * 1000 + number

    def run(self) -> None:
        load, client = self._load, self._client
        random_ = random.Random(self._seed)  # noqa: S311 -- load, not secrets
        choose = chooser(load.workload.distribution, load.workload.keys, random_)
        value = random_.randbytes(load.workload.value_bytes)
        begin = self.recorder.begin
        time.sleep(max(0.0, begin - load.warmup_s - time.monotonic()))
        while (started := time.monotonic()) < begin + load.seconds:
            status = "200"
            try:
                client.put(load.workload.key(choose()), value)
            except RaftkvError as error:
                status = "error"
                if len(self.errors) < EXAMPLES_KEPT:
                    self.errors.append(str(error))
            self.recorder.note(status, started, time.monotonic() - started)

    def tally(self) -> Tally:
        """What this thread saw."""
        return Tally(self.recorder.windows(), errors=self.errors)


def make(load: Load) -> Tally:
    """Make the load; ``connections`` is the threads, all with one client."""
    with Client([f"http://{host}:{port}" for host, port in load.addresses]) as client:
        begin = begin_together()
        callers = [_Caller(load, client, begin, number) for number in range(load.connections)]
        for caller in callers:
            caller.start()
        time.sleep(max(0.0, begin - time.monotonic()))
        cpu_before = cpu_s()
        while any(caller.is_alive() for caller in callers):
            callers[0].join(REPORT_EVERY_S)
            parts = [caller.recorder.progress for caller in callers]
            write(Progress(sum(p.answered for p in parts), sum(p.failed for p in parts)))
            if not callers[0].is_alive():
                callers = [*callers[1:], callers[0]]
        tally = merged([caller.tally() for caller in callers])
        tally.cpu_s = cpu_s() - cpu_before
    tally.errors = tally.errors[:EXAMPLES_KEPT]
    return tally


if __name__ == "__main__":
    write(make(read_load()))
