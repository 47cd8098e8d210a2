"""Text from outside cannot forge a line or drive a terminal, and stays readable."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftkv.core.visible import visible, visible_facts, visible_json, visible_lines

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, ümlaut, 漢字, 😀", "plain text, ümlaut, 漢字, 😀"),
        ("a\nERROR forged", r"a\nERROR forged"),
        ("\x1b[2J\x07", r"\x1b[2J\x07"),
        ("\x9b31m\x7f", r"\x9b31m\x7f"),
        ("moc\u202eevil", r"moc\u202eevil"),
        ("a\u2028b\ud800", r"a\u2028b\ud800"),
    ],
)
def test_what_is_not_printable_is_shown_as_an_escape(text: str, shown: str) -> None:
    """Controls, line ends, marks of direction and lone surrogates; everything else stays."""
    assert visible(text) == shown


@given(st.text())
def test_whatever_comes_is_printable(text: str) -> None:
    """One line, which can be encoded and written anywhere; text with lines keeps its own."""
    assert visible(text).isprintable()
    visible(text).encode()
    assert visible_lines(text).count("\n") == text.count("\n")


@given(JSON)
def test_json_stays_equal(document: object) -> None:
    """Whoever reads the line as JSON gets what was meant; whoever prints it is not driven."""
    line = visible_json(json.dumps(document, ensure_ascii=False))
    assert line.isprintable()
    assert json.loads(line) == document


@given(JSON)
def test_facts_keep_their_shape(document: object) -> None:
    """Only texts are changed."""
    shown = json.dumps(visible_facts(document), ensure_ascii=False)
    assert shown.isprintable()
