"""For ``make docs``: names that docstrings mark with a role of Sphinx are shown as code.

Docstrings are written for whoever reads them in the source; the site's Markdown knows no roles.
zensical.toml names this file as an extension of griffe, which reads the docstrings.
"""

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|meth|func|mod|data|attr|exc):`[~!]?([^`]+)`")


class DocstringRoles(griffe.Extension):
    """Turns ``:class:`raftkv.Client``` into the name alone, between code marks."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        """Called for every module, class, function and attribute that was read."""
        if obj.docstring is not None:
            obj.docstring.value = _ROLE.sub(r"`\1`", obj.docstring.value)
