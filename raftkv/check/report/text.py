"""Words for the report: numbers, durations, keys and values as short, harmless text.

Keys and values are whatever clients wrote. Nothing here is markup yet: who puts text into the page
escapes it there, once (:func:`html.escape`, or JSON for the embedded data).
"""

import json
from typing import Any

TEXT_CHARS_MAX = 200
"""A value, key or member longer than this is cut: the page is for reading, the history has all."""

_UNITS = ((1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "µs"))


def cut(text: str, limit: int = TEXT_CHARS_MAX) -> str:
    """Return ``text`` with every unprintable character spelled out, at most ``limit`` long.

    Spelling out what cannot be printed also disarms characters that turn the direction of writing.
    """
    short = text[: limit + 1]
    if not short.isprintable():
        short = "".join(c if c.isprintable() else _spelled(c) for c in short)
    return short if len(short) <= limit else short[: limit - 1] + "…"


def _spelled(character: str) -> str:
    return json.dumps(character)[1:-1].replace("\x7f", r"\u007f")


def shown(value: Any, limit: int = TEXT_CHARS_MAX) -> str:
    """Return a JSON value as text."""
    return cut(json.dumps(value, ensure_ascii=False), limit)


def key_name(key: str | None) -> str:
    """Return a key as people read it: bare where nothing about it can mislead."""
    if key is None:
        return "(whole history)"
    return cut(key) if key and key.isprintable() and key == key.strip() else shown(key)


def duration(time_ns: float) -> str:
    """Return a duration of ``time_ns`` nanoseconds with three digits and a fitting unit."""
    for unit_ns, unit in _UNITS:
        if time_ns >= unit_ns:
            return f"{_three_digits(time_ns / unit_ns)} {unit}"
    return f"{time_ns:.0f} ns" if time_ns else "0"


def _three_digits(amount: float) -> str:
    places = max(0, 3 - len(str(int(amount))))
    text = f"{amount:,.{places}f}"
    return text.rstrip("0").rstrip(".") if places else text


def seconds(time_ns: float) -> str:
    """Return a moment ``time_ns`` nanoseconds after the start, in seconds, to the microsecond."""
    return f"{time_ns / 1_000_000_000:.6f}"


def counted(number: int, noun: str) -> str:
    """Return ``1 key``, ``2,000 keys``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
