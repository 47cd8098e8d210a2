"""A report as a tree of elements, strict about what a report must not get wrong."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

VOID = {"meta"}


@dataclass
class Element:
    """One element: its own and its children's text in order, so that ``text`` reads as shown."""

    tag: str
    attributes: dict[str, str]
    content: list["Element | str"] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All text within."""
        return "".join(part if isinstance(part, str) else part.text for part in self.content)

    @property
    def classes(self) -> set[str]:
        """Its classes."""
        return set(self.attributes.get("class", "").split())

    def __iter__(self) -> Iterator["Element"]:
        """Yield every element within, in the order of the document."""
        for part in self.content:
            if isinstance(part, Element):
                yield part
                yield from part

    def all(self, tag: str, name: str = "") -> list["Element"]:
        """Return the elements within of a tag and, if given, a class."""
        return [e for e in self if e.tag == tag and (not name or name in e.classes)]

    def by_id(self, anchor: str) -> "Element":
        """Return the one element with an id."""
        (found,) = [e for e in self if e.attributes.get("id") == anchor]
        return found

    def rows(self) -> list[list[str]]:
        """Return the cells of a table's body."""
        return [cells for row in self.all("tr") if (cells := [cell.text for cell in row.all("td")])]


class _Builder(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.root = Element("", {})
        self._open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"an attribute twice: <{tag} {attrs}>"
        element = Element(tag, {name: value or "" for name, value in attrs})
        self._open[-1].content.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop().tag == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        self._open[-1].content.append(data)

    def finish(self) -> Element:
        """Return the tree of a document in which everything was closed."""
        self.close()
        assert self._open == [self.root]
        return self.root


def read_page(path: Path) -> Element:
    """Parse a report; fails if a tag is not closed, or an attribute given twice."""
    builder = _Builder()
    builder.feed(path.read_text(encoding="utf-8"))
    return builder.finish()


def data_of(page: Element) -> dict[str, Any]:
    """Return the data that the page carries for its script."""
    data: dict[str, Any] = json.loads(page.by_id("data").text)
    return data


def carried(page: Element, part: int = 0) -> list[int]:
    """Return the indices of the operations that the page carries of a part."""
    return [row[0] for row in data_of(page)["parts"][part]["operations"]]
