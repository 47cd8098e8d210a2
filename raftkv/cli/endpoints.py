"""Where a cluster is: every command takes its URLs in the same ways."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])


def endpoints_option(text: str, *, variable: str | None = None) -> Callable[[_Command], _Command]:
    """Add ``endpoints``, a tuple of URLs as they were typed; empty if none was.

    The option has two names, may be repeated, and may list several URLs with commas.

    Args:
        text: Its help.
        variable: Environment variable that it is taken from if it is not given; spaces separate
            URLs in it, too.
    """
    return click.option(
        "--endpoint",
        "--endpoints",
        "endpoints",
        metavar="URL[,URL]",
        multiple=True,
        envvar=variable,
        show_envvar=True,
        callback=_each,
        help=text,
    )


def _each(
    _context: click.Context, _parameter: click.Parameter, lists: tuple[str, ...]
) -> tuple[str, ...]:
    """Every URL of every list. A list of nothing stays, to be refused: it was meant to be one."""
    return tuple(url for text in lists for url in _urls(text) or [text])


def _urls(text: str) -> list[str]:
    return [url.strip() for url in text.split(",") if url.strip()]
