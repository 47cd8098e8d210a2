r"""Histories in the formats of other tools: logs of Jepsen's etcd test, and EDN maps.

Neither has times: an event's time is its line.

- ``jepsen-etcd``: lines such as ``INFO  jepsen.util - 2\t:invoke\t:cas\t[3 0]``, of one register.
- ``kv``: lines such as ``{:process 0, :type :invoke, :f :put, :key "7", :value "x"}``.
"""

import json
import re
from typing import Any

from raftkv.check.event import INFO, Event, HistoryError

# A line is a stranger's: no pattern here takes more than linear time for one that does not fit.
_LOGGER = "jepsen.util"
_JEPSEN = re.compile(r"\s+-\s+(\d+)\s+:(\w+)\s+:([\w-]+)\s+(\S.*)")
_JEPSEN_VALUE = re.compile(r"nil|:timed-out|-?\d+|\[\s*(nil|-?\d+)\s+(nil|-?\d+)\s*\]")
_OTHER_LOG = re.compile(r"(TRACE|DEBUG|INFO|WARN|ERROR|FATAL)\s++(?!jepsen\.util\s+-\s+\d).*")

_EDN_VALUE = r'nil|true|false|-?\d+|:[\w-]+|"(?:[^"\\]|\\.)*"'
_EDN_MEMBER = re.compile(rf":([\w-]+)\s+({_EDN_VALUE})")
_EDN_MAP = re.compile(rf"\{{(?:[\s,]*:[\w-]+\s+(?:{_EDN_VALUE}))*[\s,]*\}}")


def jepsen_line(line: str, number: int) -> Event | None:
    """Return the event of a line of Jepsen's log; None for a line that tells of something else.

    Raises:
        HistoryError: the line looks like an event and is none.
    """
    match = _JEPSEN.fullmatch(line.rstrip().rpartition(_LOGGER)[2]) if _LOGGER in line else None
    if match is None:
        if _OTHER_LOG.fullmatch(line):
            return None
        raise HistoryError("not a line of a Jepsen log")
    process, kind, f, text = match.groups()
    if not _JEPSEN_VALUE.fullmatch(text):
        raise HistoryError(f"cannot read the value {text}")
    # Whatever it is called: who waited in vain knows nothing.
    kind = INFO if text == ":timed-out" else kind
    return Event(int(process), kind, f, None, _jepsen_value(text), number)


def _jepsen_value(text: str) -> Any:
    if text.startswith("["):
        return [_jepsen_value(word) for word in text[1:-1].split()]
    return None if text in ("nil", ":timed-out") else int(text)


def kv_line(line: str, number: int) -> Event:
    """Return the event of a line that is an EDN map.

    Raises:
        HistoryError: it is none, or a member is missing.
    """
    if not _EDN_MAP.fullmatch(line):
        raise HistoryError("not a map in EDN")
    members = {name: _edn_value(text) for name, text in _EDN_MEMBER.findall(line)}
    try:
        process, kind, f, key = (members.pop(name) for name in ("process", "type", "f", "key"))
    except KeyError as error:
        raise HistoryError(f"the member :{error.args[0]} is missing") from error
    return Event(process, kind, f, key, members.pop("value", None), number, members)


def _edn_value(text: str) -> Any:
    if text.startswith(":"):
        return text[1:]
    if text == "nil":
        return None
    # What is left of EDN's escapes and numbers is also JSON.
    try:
        return json.loads(text, strict=False)
    except ValueError as error:
        raise HistoryError(f"cannot read {text}: {error}") from error
