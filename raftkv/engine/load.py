"""How busy the shards of a node are and which keys stand out, for next to nothing per request."""

from collections import deque
from collections.abc import Sequence

from raftkv.core.operations import Command, KeyWrite
from raftkv.rpc.messages import GetRequest
from raftkv.status.facts import HotKey, LoadRates

RATE_WINDOW_S = 10
"""Rates are means over this long."""

SAMPLE_EVERY = 31
"""One request of so many is looked at for hot keys; a prime, so that no rhythm hides from it."""

COUNTERS = 64
FORGET_EVERY_S = 30
"""All counts are halved after this long, so that what was hot yesterday is not hot today."""

HOT_SHARE = 0.02
HOT_SAMPLES_MIN = 5
HOT_KEYS_SHOWN = 10


class SpaceSaving:
    """The most frequent of many keys in bounded memory.

    Metwally, Agrawal and El Abbadi, "Efficient Computation of Frequent and Top-k Elements in Data
    Streams" (ICDT 2005): a key without a counter takes over the smallest one, count and all, and
    remembers that count as its possible error. Any key with more than 1/counters of all samples
    has a counter.
    """

    def __init__(self, counters: int = COUNTERS) -> None:
        self._counters = counters
        self._counts: dict[bytes, int] = {}
        self._errors: dict[bytes, int] = {}
        self.total = 0
        """Samples taken, less what was forgotten."""

    def add(self, key: bytes) -> None:
        """Count one sample."""
        self.total += 1
        counts = self._counts
        if key in counts:
            counts[key] += 1
        elif len(counts) < self._counters:
            counts[key], self._errors[key] = 1, 0
        else:
            least = min(counts, key=counts.__getitem__)
            error = counts.pop(least)
            del self._errors[least]
            counts[key], self._errors[key] = error + 1, error

    def halve(self) -> None:
        """Let the past count half."""
        self.total //= 2
        self._counts = {key: count // 2 for key, count in self._counts.items() if count > 1}
        self._errors = {key: self._errors[key] // 2 for key in self._counts}

    def certain(self) -> list[tuple[bytes, int]]:
        """Return keys with how often each was seen at the very least, most frequent first."""
        least = [(key, count - self._errors[key]) for key, count in self._counts.items()]
        return sorted(least, key=lambda pair: (-pair[1], pair[0]))


class ShardLoad:
    """Reads and writes that this node served of one shard.

    A request costs an addition and a subtraction; everything else happens once a second or for
    one request in :data:`SAMPLE_EVERY`.
    """

    __slots__ = ("_halve_in_s", "_hot", "_seconds", "_until_sample", "reads", "writes")

    def __init__(self) -> None:
        self.reads = 0
        """Keys and scans read, since the start."""
        self.writes = 0
        """Commands taken, since the start."""
        self._until_sample = SAMPLE_EVERY
        self._hot = SpaceSaving()
        self._seconds: deque[tuple[int, int]] = deque([(0, 0)], maxlen=RATE_WINDOW_S + 1)
        self._halve_in_s = FORGET_EVERY_S

    def sampled(self) -> bool:
        """Count one request down; whether it is one to be looked at."""
        self._until_sample -= 1
        if self._until_sample:
            return False
        self._until_sample = SAMPLE_EVERY
        return True

    def saw(self, key: bytes) -> None:
        """Look at the key of a sampled request."""
        self._hot.add(key)

    def took(self, operations: Sequence[Command | GetRequest]) -> None:
        """Count the operations of a batch, and look at every so many of them."""
        writes = list(map(type, operations)).count(Command)
        self.writes += writes
        self.reads += len(operations) - writes
        for place in range(self._until_sample - 1, len(operations), SAMPLE_EVERY):
            item = operations[place]
            wanted = item.operation if isinstance(item, Command) else item
            if isinstance(wanted, KeyWrite | GetRequest):
                self.saw(wanted.key)
        # Where the next one is, after as many more were counted down.
        self._until_sample = (self._until_sample - 1 - len(operations)) % SAMPLE_EVERY + 1

    def each_second(self) -> None:
        """Let the windows move on."""
        self._seconds.append((self.reads, self.writes))
        self._halve_in_s -= 1
        if not self._halve_in_s:
            self._halve_in_s = FORGET_EVERY_S
            self._hot.halve()

    def rates(self) -> LoadRates:
        """Return requests per second over the last seconds."""
        (reads, writes), seconds = self._seconds[0], max(len(self._seconds) - 1, 1)
        newest = self._seconds[-1]
        return LoadRates(
            reads_per_s=round((newest[0] - reads) / seconds, 1),
            writes_per_s=round((newest[1] - writes) / seconds, 1),
        )

    def hot_keys(self) -> tuple[HotKey, ...]:
        """Return the keys that certainly have a large share of the sampled requests."""
        total = self._hot.total
        return tuple(
            HotKey(key.hex(), _text(key), round(count / total, 3))
            for key, count in self._hot.certain()[:HOT_KEYS_SHOWN]
            if count >= HOT_SAMPLES_MIN and count / total >= HOT_SHARE
        )


def _text(key: bytes) -> str | None:
    try:
        return key.decode()
    except UnicodeDecodeError:
        return None
