"""Figures as people read them; pages and the command line print the same.

What is not known is an en dash: never a zero, which would be a statement.
"""

import math
from datetime import UTC, datetime

UNKNOWN = "–"  # noqa: RUF001 -- an en dash is meant

_KILO = 1000
_KIBI = 1024
_MINUTE_S = 60
_HOUR_S = 3600
_DAY_S = 86400
_TEN = 10
_YEAR_9999_US = 253_370_764_800_000_000


def _number(value: float | None) -> float | None:
    """Return a finite number, None for anything else."""
    return None if value is None or not math.isfinite(value) else float(value)


def count(value: float | None) -> str:
    """A whole number with its thousands apart: ``12,345``."""
    number = _number(value)
    return UNKNOWN if number is None else f"{number:,.0f}"


def size(value: float | None) -> str:
    """Bytes in the largest unit that leaves a figure before the point: ``1.2 GiB``."""
    number = _number(value)
    if number is None:
        return UNKNOWN
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    for unit in units:
        if abs(number) < _KIBI or unit == units[-1]:
            digits = 0 if unit == "B" or number >= 100 else 1  # noqa: PLR2004
            return f"{number:.{digits}f} {unit}"
        number /= _KIBI
    raise AssertionError(units)


def duration(value: float | None) -> str:
    """Seconds as a person says them: ``3 s``, ``5 min``, ``2 h 10 min``, ``4 d``."""
    number = _number(value)
    if number is None:
        return UNKNOWN
    seconds = max(number, 0.0)
    if seconds < 1:
        return f"{seconds * _KILO:.0f} ms"
    if seconds < _MINUTE_S:
        return f"{seconds:.0f} s"
    if seconds < _HOUR_S:
        return f"{seconds / _MINUTE_S:.0f} min"
    if seconds < _DAY_S:
        return f"{seconds // _HOUR_S:.0f} h {seconds % _HOUR_S // _MINUTE_S:.0f} min"
    return f"{seconds // _DAY_S:.0f} d {seconds % _DAY_S // _HOUR_S:.0f} h"


def milliseconds(value: float | None) -> str:
    """Milliseconds with as many digits as matter: ``0.35 ms``, ``12 ms``."""
    number = _number(value)
    if number is None:
        return UNKNOWN
    digits = 0 if number >= _TEN else 1 if number >= 1 else 2
    return f"{number:.{digits}f} ms"


def rate(value: float | None) -> str:
    """Events a second: ``0``, ``0.4``, ``1,234``."""
    number = _number(value)
    if number is None:
        return UNKNOWN
    return f"{number:.1f}" if 0 < number < _TEN else f"{number:,.0f}"


def percent(value: float | None) -> str:
    """A share of 1 as per cent: ``12.5 %``."""
    number = _number(value)
    return UNKNOWN if number is None else f"{number * 100:.1f} %"


def moment(at_us: float | None) -> str:
    """A wall clock moment in UTC: ``2026-12-01 09:30:00 UTC``."""
    number = _number(at_us)
    if number is None or not 0 <= number < _YEAR_9999_US:
        return UNKNOWN
    return datetime.fromtimestamp(number / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def elapsed(at_us: float | None, now_us: int) -> str:
    """For how long something has been so since a wall clock moment: ``5 min``."""
    number = _number(at_us)
    return UNKNOWN if number is None else duration((now_us - number) / 1e6)


def clock(at_us: float | None, now_us: int) -> str:
    """A wall clock moment in UTC, ``09:30:00``; of another day ``2026-11-30 09:30:00``."""
    number = _number(at_us)
    if number is None:
        return UNKNOWN
    try:
        moment, now = (datetime.fromtimestamp(us / 1e6, UTC) for us in (number, now_us))
    except (OverflowError, ValueError, OSError):  # no moment of any calendar
        return UNKNOWN
    return f"{moment:%H:%M:%S}" if moment.date() == now.date() else f"{moment:%Y-%m-%d %H:%M:%S}"


def age(at_us: float | None, now_us: int) -> str:
    """How long ago a wall clock moment was; one of the last second is ``now``."""
    number = _number(at_us)
    if number is None:
        return UNKNOWN
    seconds = (now_us - number) / 1e6
    return "now" if seconds < 1 else f"{duration(seconds)} ago"
