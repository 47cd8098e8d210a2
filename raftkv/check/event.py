"""One event of a history, and one line of a file of events.

docs/histories.md describes the members. An event is the begin (``invoke``) or the end of an
operation. The end says ``ok`` (it took effect), ``fail`` (it certainly did not) or ``info`` (nobody
knows: it may take effect at any time after its begin, or never).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

INVOKE, OK, FAIL, INFO = TYPES = ("invoke", "ok", "fail", "info")

_INTEGERS_END = 2**63
_MEMBERS = ("process", "type", "f", "key", "value", "time_ns")


class HistoryError(ValueError):
    """The history cannot be read or judged; one line that says where and why."""


@dataclass(frozen=True, slots=True)
class Event:
    """The begin or the end of an operation."""

    process: int
    type: str
    """One of ``TYPES``."""
    f: str
    """The name of the operation, such as ``read``."""
    key: str | None
    value: Any
    """Whatever JSON can say."""
    time_ns: int
    """By one clock for the whole history."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """All other members."""


def to_line(event: Event) -> str:
    """Return the event as a line of a file, with its newline.

    Raises:
        ValueError: the value is none that JSON can say.
    """
    members = {name: getattr(event, name) for name in _MEMBERS}
    return json.dumps({**event.fields, **members}, allow_nan=False, separators=(",", ":")) + "\n"


def from_line(line: str) -> Event:
    """Return the event of a line.

    Raises:
        HistoryError: it is not one; says which member is wrong.
    """
    members = _object(line)
    for name in _MEMBERS:
        # An end may leave out what its begin has said, and null need not be spelled.
        if name not in members and name not in ("key", "value"):
            raise HistoryError(f'the member "{name}" is missing')
    event = Event(
        members.pop("process"),
        members.pop("type"),
        members.pop("f"),
        members.pop("key", None),
        members.pop("value", None),
        members.pop("time_ns"),
        members,
    )
    check(event)
    return event


def _object(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise HistoryError(f"not JSON, or cut short: {error}") from error
    if not isinstance(found, dict):
        raise HistoryError("not a JSON object")
    return found


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def check(event: Event) -> None:
    """Check what types cannot: members come from files.

    Raises:
        HistoryError: a member has the wrong type; says which.
    """
    _check_integer("process", event.process)
    if event.type not in TYPES:
        raise HistoryError(f'"type" must be one of {", ".join(TYPES)}, not {event.type!r}')
    if not isinstance(event.f, str):
        raise HistoryError(f'"f" must be text, not {event.f!r}')
    if not isinstance(event.key, str | None):
        raise HistoryError(f'"key" must be text or null, not {event.key!r}')
    _check_integer("time_ns", event.time_ns)


def _check_integer(name: str, value: object) -> None:
    # type() and not isinstance: true is no number here.
    if type(value) is not int:
        raise HistoryError(f'"{name}" must be an integer, not {value!r}')
    if abs(value) >= _INTEGERS_END:
        raise HistoryError(f'"{name}" must be an integer of 64 bits')
