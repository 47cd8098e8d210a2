"""KeyValue point for pip and setuptools: everything but the long description is in setup.cfg."""

import configparser
import re
from pathlib import Path

from setuptools import setup

TOP = Path(__file__).resolve().parent


def long_description() -> str:
    """README.md for a package index, which has none of the files that its links name.

    In the repository links stay relative, so that they work in every checkout, branch and fork.
    Here they point into the repository, at the tag of this version.
    """
    settings = configparser.ConfigParser()
    settings.read(TOP / "setup.cfg", encoding="utf-8")
    repository = settings["metadata"]["url"]
    version = re.search(
        r'__version__ = "(.+)"', (TOP / "raftkv" / "version.py").read_text(encoding="utf-8")
    )
    if version is None:
        raise ValueError("raftkv/version.py has no version")

    def absolute(found: re.Match[str]) -> str:
        # A picture is wanted as it is, anything else as the page that shows it.
        kind = "raw" if found["mark"] else "blob"
        return (
            f"{found['mark']}[{found['text']}]({repository}/{kind}/v{version[1]}/{found['path']})"
        )

    text = (TOP / "README.md").read_text(encoding="utf-8")
    return re.sub(
        r"(?P<mark>!?)\[(?P<text>[^]]*)\]\((?!https?:|#)(?P<path>[^)]+)\)", absolute, text
    )


setup(long_description=long_description())
