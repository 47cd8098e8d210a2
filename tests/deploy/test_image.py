"""The image gets exactly what the lock file names, and the lock file what setup.cfg asks for."""

import configparser
import re

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.deploy.deployment import DEPLOY, TOP

SETUP = (TOP / "setup.cfg").read_text()
LOCK = (DEPLOY / "docker" / "requirements.txt").read_text()
DOCKERFILE = (DEPLOY / "docker" / "Dockerfile").read_text()

# A package, its version, its hashes and by whom it comes, as pip-compile writes them.
PINNED = re.compile(r"^(\S+)==(\S+) \\\n((?: +--hash=\S+.*\n)+) +# via (.*)$", re.MULTILINE)


def misfits(setup_cfg: str, lock: str) -> set[str]:
    """The packages of which setup.cfg and the lock file say different things."""
    settings = configparser.ConfigParser()
    settings.read_string(setup_cfg)
    server = settings["options.extras_require"]["server"]
    listed = settings["options"]["install_requires"] + server
    asked = {
        canonicalize_name(requirement.name): requirement.specifier
        for requirement in map(Requirement, filter(None, map(str.strip, listed.splitlines())))
    }
    locked = {
        canonicalize_name(name): version
        for name, version, _, via in PINNED.findall(lock)
        if "raftkv (setup.cfg)" in via
    }
    return (set(asked) ^ set(locked)) | {
        name for name in set(asked) & set(locked) if locked[name] not in asked[name]
    }


def test_the_lock_file_has_what_setup_cfg_asks_for() -> None:
    """Every dependency is locked at a version that setup.cfg allows, and no other is."""
    assert misfits(SETUP, LOCK) == set(), "renew it: docs/operations.md, What is in the image"


@pytest.mark.parametrize(
    ("old", "new", "misfit"),
    [
        ("    click>=", "    attrs>=24\n    click>=", "attrs"),
        ("    click>=8.1,<9\n", "", "click"),
        ("    click>=8.1,<9\n", "    click>=8.1,<8.2\n", "click"),
    ],
)
def test_a_change_of_setup_cfg_is_noticed(old: str, new: str, misfit: str) -> None:
    """A dependency that is added, dropped or bound otherwise needs another lock file."""
    assert old in SETUP
    assert misfits(SETUP.replace(old, new), LOCK) == {misfit}


def test_every_package_is_locked_with_hashes() -> None:
    """No line of the lock file names a package without its hashes."""
    named = re.findall(r"^\w.*", LOCK, re.MULTILINE)
    assert len(named) == len(PINNED.findall(LOCK)) >= len(misfits(SETUP, ""))


def test_the_image_gets_nothing_that_is_not_locked() -> None:
    """The build asks pip for hashes, and for nothing beside the lock file with raftkv itself."""
    installs = re.findall(r"pip install (.*)", DOCKERFILE.replace("\\\n", " "))
    dependencies, raftkv = (set(line.split("&&")[0].split()) for line in installs)
    assert {"--require-hashes", "-r", "requirements.txt"} <= dependencies
    assert {"--no-deps", "--no-build-isolation", "."} <= raftkv


def test_the_base_image_is_one_release_of_python() -> None:
    """Both stages name the same release, not what is newest on the day of the build."""
    (base,) = set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE))
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-bookworm(@sha256:[0-9a-f]{64})?", base)
