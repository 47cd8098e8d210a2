"""The documentation holds together: links, headings, the index, and what the code cites of it."""

import re
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import pytest

TOP = Path(__file__).resolve().parents[2]
DOCS = TOP / "docs"
REPOSITORY = "https://github.com/raftkv/raftkv"
PAGES = sorted(
    [
        *DOCS.rglob("*.md"),
        *(TOP / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    ]
)
SOURCES = sorted(
    path
    for folder in ("raftkv", "tests", "deploy")
    for path in (TOP / folder).rglob("*")
    if path.suffix in {".py", ".toml", ".yml", ".yaml", ".html", ".js", ".service", ".md"}
    and "histories" not in path.parts
    and path != Path(__file__)
)


class Link(NamedTuple):
    """One link or citation: where it stands, and the file and heading that it names."""

    where: str
    path: Path
    anchor: str


def text_of(page: Path) -> str:
    """What a page says outside of code blocks."""
    return re.sub(r"(?ms)^ *```.*?^ *```", "", page.read_text(encoding="utf-8"))


def anchors_of(page: Path) -> set[str]:
    """The names of its headings, as GitHub and the site make them."""
    headings = re.findall(r"(?m)^#+ +(.+)$", text_of(page))
    return {slug(heading) for heading in headings}


def slug(heading: str) -> str:
    """Lower case, words joined by hyphens, without code marks and punctuation."""
    shown = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
    return re.sub(r"[^\w\- ]", "", shown).replace(" ", "-")


def links_of(page: Path) -> Iterator[Link]:
    """Links to files of this repository, by a relative path or by its address."""
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        name, _, anchor = target.partition("#")
        if name.startswith(REPOSITORY + "/blob/main/"):
            path = TOP / name.removeprefix(REPOSITORY + "/blob/main/")
        elif "://" in name:
            continue
        else:
            path = page.parent / name if name else page
        yield Link(f"{page.relative_to(TOP)}: {target}", path.resolve(), anchor)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TOP)))
def test_every_link_leads_somewhere(page: Path) -> None:
    """To a file that exists, and a heading that it has."""
    for link in links_of(page):
        assert link.path.exists(), link.where
        if link.anchor:
            assert link.anchor in anchors_of(link.path), link.where


def test_every_page_is_in_the_index_and_on_the_site() -> None:
    """docs/README.md and docs/log/README.md name all pages, and so does the site's navigation."""
    pages = set(DOCS.rglob("*.md"))
    index, log = DOCS / "README.md", DOCS / "log" / "README.md"
    linked = {link.path for page in (index, log) for link in links_of(page)}
    assert pages - linked == {index}
    with (TOP / "zensical.toml").open("rb") as file:
        site = tomllib.load(file)["project"]
    assert {DOCS / name for name in pages_of(site["nav"])} == pages
    assert site["repo_url"] == REPOSITORY


def pages_of(entries: list[dict[str, object]]) -> Iterator[str]:
    """The files of a navigation, which may have sections."""
    for entry in entries:
        for value in entry.values():
            if isinstance(value, list):
                yield from pages_of(value)
            else:
                yield str(value)


def test_pages_of_the_site_link_to_nothing_outside_of_it() -> None:
    """A relative link out of docs/ would work in a checkout and not on the site."""
    out = [
        link.where
        for page in DOCS.rglob("*.md")
        for link in links_of(page)
        if REPOSITORY not in link.where and DOCS not in link.path.parents
    ]
    assert out == []


# --- citations ------------------------------------------------------------------------------------


def citations() -> Iterator[Link]:
    """Pages that code names: ``docs/x.md``, ``docs/x.md#a``, ``docs/x.md, "A"``."""
    for source in SOURCES:
        text = source.read_text(encoding="utf-8")
        for found in re.finditer(
            r'(docs/(?:log/)?[\w.-]+\.md)(?:#([\w-]+)|,\s*"([^"]+)")?', re.sub(r"\n\s*", " ", text)
        ):
            anchor = found[2] or (slug(found[3]) if found[3] else "")
            yield Link(f"{source.relative_to(TOP)}: {found[0]}", TOP / found[1], anchor)


def test_what_the_code_cites_of_the_documentation_is_there() -> None:
    """The page, and the heading where one is named."""
    found = list(citations())
    assert any('docs/design.md, "A write"' in link.where for link in found)
    for link in found:
        assert link.path.exists(), link.where
        if link.anchor:
            assert link.anchor in anchors_of(link.path), link.where


def test_no_citation_needs_a_page_that_is_not_in_the_repository() -> None:
    """Neither sections by number nor letters that stand for files of the library."""
    unknown = re.compile(r"\bdesign, section|\bsection \d+ of the design|\b[SJZTC]:\d{2,4}\b")
    found = [
        f"{source.relative_to(TOP)}: {match[0]}"
        for source in SOURCES
        for match in unknown.finditer(source.read_text(encoding="utf-8"))
    ]
    assert found == []


def test_lines_of_the_library_that_are_cited_are_there() -> None:
    """``syncobj.py:1151`` is a line of the pinned PySyncObj that is not empty."""
    cited = {
        (match[1], int(match[2]))
        for source in SOURCES
        for match in re.finditer(
            r"\b(syncobj|journal|serializer|transport|tcp_connection)\.py:(\d+)",
            source.read_text(encoding="utf-8"),
        )
    }
    assert cited
    library = metadata.distribution("pysyncobj")
    for module, number in cited:
        lines = Path(str(library.locate_file(f"pysyncobj/{module}.py"))).read_text().splitlines()
        assert lines[number - 1].strip(), (module, number)


def test_every_hazard_that_is_named_is_listed() -> None:
    """H1 to H21 of docs/hazards.md, wherever code or documentation speaks of one."""
    listed = set(re.findall(r"(?m)^\| \**(H\d+)\b", (DOCS / "hazards.md").read_text()))
    assert len(listed) == 21
    named = {
        name
        for path in (*SOURCES, *PAGES)
        for name in re.findall(r"\bH\d{1,2}\b", path.read_text(encoding="utf-8"))
    }
    assert named <= listed


def test_files_that_pages_name_exist() -> None:
    """Paths of this repository in a page's text; the log tells of its own day."""
    missing = [
        f"{page.relative_to(TOP)}: {name}"
        for page in PAGES
        if DOCS / "log" not in page.parents
        for name in re.findall(
            r"`((?:[\w.-]+/)+[\w.-]+\.(?:py|toml|yml|yaml|svg))(?::\d+)?`", text_of(page)
        )
        if not exists(name)
    ]
    assert missing == []


def exists(name: str) -> bool:
    """A path from the top, or from the package's."""
    return any((folder / name).exists() for folder in (TOP, TOP / "raftkv", DOCS))


def test_git_keeps_nothing_that_is_built() -> None:
    """The site, distributions and caches are not part of the repository."""
    ignored = (TOP / ".gitignore").read_text().splitlines()
    assert {"/site/", "dist/", "/.cache/"} <= set(ignored)
