"""Pages are read in a hurry: their sentences are short."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
]
WORDS_MAX = 20
"""On average over a page; a single sentence may be longer."""

LONGER = {"guarantees.md": 21, "testing.md": 24}
"""Pages that are above it still, and by how much; the numbers may only fall."""

_CODE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
_BLOCK = re.compile(r"\n\s*\n|\n(?=\s*(?:[-*#|<!:]|\d+\. ))")
_NO_PROSE = ("#", "|", "!", "<", ":::")


def sentences(page: str) -> list[str]:
    """The sentences of a page's prose and lists; code, tables, headings and images are none."""
    found = []
    for block in _BLOCK.split(_CODE.sub("", page)):
        text = block.strip()
        if text.startswith(_NO_PROSE):
            continue
        plain = re.sub(r"`[^`]*`", "code", _LINK.sub(r"\1", re.sub(r"^([-*]|\d+\.)\s+", "", text)))
        found += [s for s in re.split(r"(?<=[.!?])\s+", plain) if re.search(r"\w", s)]
    return found


def words(sentence: str) -> int:
    """How many words a sentence has."""
    return len(re.findall(r"[\w'-]+", sentence))


def test_what_counts_as_a_sentence() -> None:
    """Prose and items of lists, with code and links as words; nothing else."""
    page = (
        "# A title\n\nOne `a b` two. [Three four](x.md)?\n- five\n\n| six |\n\n```\nseven.\n```\n"
    )
    assert sentences(page) == ["One code two.", "Three four?", "five"]
    assert [words(sentence) for sentence in sentences(page)] == [3, 2, 1]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_sentences_of_a_page_are_short_on_average(page: Path) -> None:
    """At most 20 words, so that each says one thing."""
    lengths = [words(sentence) for sentence in sentences(page.read_text(encoding="utf-8"))]
    assert sum(lengths) <= LONGER.get(page.name, WORDS_MAX) * len(lengths)
