"""What is asked of a store: which operations, on which keys, in which order."""

import math
import random
from collections.abc import Callable, Iterator
from typing import Literal, get_args

import msgspec

from raftkv.bench.load.dialects import Dialect
from raftkv.bench.load.paced import key_of

Kind = Literal["put", "get", "get-stale", "a", "b", "c", "batch", "scan"]
"""``a``, ``b`` and ``c`` are the core workloads of YCSB (Cooper et al. 2010): half, a twentieth and
none of the operations are updates, the others read. ``batch`` puts many keys a request, ``scan``
reads a page from some key on."""

Distribution = Literal["uniform", "zipfian"]

KINDS: tuple[Kind, ...] = get_args(Kind)
DISTRIBUTIONS: tuple[Distribution, ...] = get_args(Distribution)
KEY_BYTES_MIN = 16

_PUT_SHARE = {"put": 1.0, "get": 0.0, "get-stale": 0.0, "a": 0.5, "b": 0.05, "c": 0.0}
_THETA = 0.99
"""The skew that YCSB uses."""
_SUMMED_EXACTLY = 10_000
_VALUES = 64
"""Values that take turns: what they hold does not matter, that they are not all the same might."""


class Workload(msgspec.Struct, frozen=True):
    """Operations on ``keys`` keys; ``batch_size`` is the operations, or rows, of one request."""

    kind: Kind = "put"
    keys: int = 10_000
    key_bytes: int = 16
    value_bytes: int = 64
    distribution: Distribution = "uniform"
    batch_size: int = 100

    @property
    def operations(self) -> int:
        """Operations in one request."""
        return self.batch_size if self.kind == "batch" else 1

    @property
    def reads(self) -> bool:
        """Whether it reads keys, which then must be there first."""
        return self.kind not in {"put", "batch"}

    def key(self, number: int) -> bytes:
        """The key of a number: neighbours, and so the popular ones, are far apart."""
        return key_of(number).rjust(self.key_bytes, b"0")

    def requests(self, dialect: Dialect, seed: int) -> Iterator[bytes]:
        """Yield requests without end, each made when it is asked for: about a microsecond."""
        random_ = random.Random(seed)  # noqa: S311 -- load, not secrets
        choose = chooser(self.distribution, self.keys, random_)
        values = [random_.randbytes(self.value_bytes) for _ in range(_VALUES)]
        if self.kind == "batch":
            return self._batches(dialect, choose, values)
        if self.kind == "scan":
            return self._scans(dialect, choose)
        return self._singles(dialect, choose, values, random_)

    def _batches(
        self, dialect: Dialect, choose: Callable[[], int], values: list[bytes]
    ) -> Iterator[bytes]:
        size = self.batch_size
        while True:
            for first in range(_VALUES):
                # Distinct keys: etcd refuses a transaction that puts one twice.
                numbers = {choose() for _ in range(size)}
                while len(numbers) < min(size, self.keys):
                    numbers.add(choose())
                yield dialect.batch(
                    [
                        (self.key(number), values[(first + place) % _VALUES])
                        for place, number in enumerate(numbers)
                    ]
                )

    def _scans(self, dialect: Dialect, choose: Callable[[], int]) -> Iterator[bytes]:
        while True:
            yield dialect.scan(self.key(choose()), self.batch_size)

    def _singles(
        self,
        dialect: Dialect,
        choose: Callable[[], int],
        values: list[bytes],
        random_: random.Random,
    ) -> Iterator[bytes]:
        put, key = dialect.put, self.key
        read = dialect.get_stale if self.kind == "get-stale" else dialect.get
        chance, put_share = random_.random, _PUT_SHARE[self.kind]
        while True:
            for value in values:
                if chance() < put_share:
                    yield put(key(choose()), value)
                else:
                    yield read(key(choose()))


def chooser(distribution: Distribution, keys: int, random_: random.Random) -> Callable[[], int]:
    """A function that returns a number below ``keys``; with ``zipfian`` 0 is the most popular."""
    chance = random_.random
    if distribution == "zipfian":
        return _zipfian(keys, chance)
    return lambda: int(chance() * keys)


def _zipfian(keys: int, chance: Callable[[], float]) -> Callable[[], int]:
    """Number ``i`` with probability in proportion to ``1 / (i + 1) ** 0.99``.

    Gray et al. 1994, "Quickly generating billion-record synthetic databases", section 3.2, which
    is what YCSB does: exact for the two most popular, an approximation for the others.
    """
    theta = _THETA
    zeta = generalized_harmonic(keys, theta)
    zeta_2 = generalized_harmonic(min(2, keys), theta)
    alpha = 1 / (1 - theta)
    eta = (1 - (2 / keys) ** (1 - theta)) / (1 - zeta_2 / zeta) if keys > 2 else 0.0  # noqa: PLR2004

    def choose() -> int:
        u = chance()
        share = u * zeta
        if share < 1:
            return 0
        if share < zeta_2:
            return 1
        return min(keys - 1, int(keys * (eta * u - eta + 1) ** alpha))

    return choose


def generalized_harmonic(count: int, theta: float) -> float:
    """The sum of ``i ** -theta`` for i = 1 to ``count``; far terms by Euler and Maclaurin."""
    near = min(count, _SUMMED_EXACTLY)
    total = math.fsum(i**-theta for i in range(1, near + 1))
    if count > near:
        power = 1 - theta
        total += (count**power - near**power) / power + (count**-theta - near**-theta) / 2
    return total
