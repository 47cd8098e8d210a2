"""SVG by hand: pictures of a few rectangles and lines need no drawing library."""

from collections.abc import Iterable
from xml.sax.saxutils import escape

INK = "#1f2933"
QUIET = "#7b8794"


def document(width: float, height: float, title: str, parts: Iterable[str]) -> str:
    """A whole picture on white; ``title`` is what it is called, for those who cannot see it."""
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" role="img">',
            f"<title>{escape(title)}</title>",
            f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
            *parts,
            "</svg>",
            "",
        ]
    )


def text(
    x: float, y: float, content: str, *, size: int, anchor: str = "start", fill: str = INK
) -> str:
    """One line of text; ``y`` is its baseline."""
    return (
        f'<text x="{x:.2f}" y="{y:.2f}" font-size="{size}" text-anchor="{anchor}" '
        f'fill="{fill}">{escape(content)}</text>'
    )
