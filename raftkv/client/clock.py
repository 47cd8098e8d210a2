"""The clock that everything in this package goes by: it runs while the machine is suspended.

How long a write may be sent again and whether its session still lives is counted by the servers,
and they do not stand still while a laptop sleeps. ``time.monotonic()`` does, on Linux.
"""

import time

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""Where there is no CLOCK_BOOTTIME (macOS), CLOCK_MONOTONIC counts sleep."""


def boot_s() -> float:
    """Seconds since some start, those in which the machine was suspended included."""
    return time.clock_gettime(_CLOCK)


def wall_us() -> int:
    """Microseconds since the epoch, as this machine believes; never decides anything."""
    return time.time_ns() // 1000
