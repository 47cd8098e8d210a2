"""Text from outside, made fit for a log or a terminal.

A name, a header, a file or a peer's reason may hold anything. A line feed in it would forge a line
of the log; an escape sequence drives the terminal of whoever reads it (CWE-117, CWE-150); marks of
writing direction show it in another order.
"""

from typing import Any


def visible(text: str) -> str:
    """Return ``text`` with an escape, as in Python, for whatever is not printable."""
    if text.isprintable():
        return text
    return "".join([c if c.isprintable() else repr(c)[1:-1] for c in text])


def visible_lines(text: str) -> str:
    """The same for text that has lines of its own, such as a trace; they stay apart."""
    return "\n".join(map(visible, text.split("\n")))


def visible_facts(value: Any) -> Any:
    """The same for every text in nested facts, names included."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, dict):
        return {visible_facts(name): visible_facts(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [visible_facts(part) for part in value]
    return value


def visible_json(line: str) -> str:
    """The same for one line of JSON, which stays equal: only its strings hold such characters."""
    if line.isprintable():
        return line
    return "".join([c if c.isprintable() else _in_json(c) for c in line])


def _in_json(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join([f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2)])
