"""What ``import raftkv`` gives: every name that a program needs, none that is not there."""

import subprocess
import sys
from pathlib import Path

import pytest
from mypy import api as mypy

import raftkv
from raftkv import client

EXPORTED = sorted({*client.__all__, "__version__"})


def run(program: str) -> str:
    """What a program of somebody else prints."""
    done = subprocess.run(  # noqa: S603 -- a program of these tests
        (sys.executable, "-c", program), capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_everything_of_the_client_is_at_the_top() -> None:
    """Errors, operations and results are where ``Client`` is, as the same objects."""
    assert raftkv.__all__ == EXPORTED
    assert all(getattr(raftkv, name) is getattr(client, name) for name in client.__all__)


def test_each_name_can_be_the_first_that_is_used() -> None:
    """``except raftkv.RaftkvError`` works in a program that imported nothing but the package."""
    for name in ("Client", "RaftkvError", "Compare"):
        assert run(f"import raftkv\nprint(raftkv.{name}.__name__)") == name
    assert run("from raftkv import *\nprint(RaftkvError.__name__, Range.__name__)") == (
        "RaftkvError Range"
    )


def test_the_package_is_imported_without_the_client() -> None:
    """Servers and the command line start without it; looking at the names does not load it."""
    program = "import sys, raftkv; dir(raftkv); print('raftkv.client' in sys.modules)"
    assert run(program) == "False"


def test_dir_shows_what_there_is() -> None:
    """Completion in a shell finds the errors."""
    assert set(EXPORTED) <= set(dir(raftkv))


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    """With Python's own words, also for ``from raftkv import``."""
    with pytest.raises(AttributeError, match="module 'raftkv' has no attribute 'Klient'") as caught:
        getattr(raftkv, "Klient")  # noqa: B009 -- a type checker would refuse it otherwise
    assert caught.value.name == "Klient"
    assert caught.value.obj is raftkv
    with pytest.raises(ImportError, match="Klient"):
        exec("from raftkv import Klient")  # noqa: S102 -- same
    assert not hasattr(raftkv, "quote")


USERS_PROGRAM = """\
import raftkv
from raftkv import Client, Compare, KeyValue, NotModified, Put, Range, RangeResult

def bump(client: Client) -> int | None:
    try:
        seen = client.get("k")
        assert seen is None or isinstance(seen, KeyValue)
        if seen is None:
            return client.put_if_absent("k", b"1").revision
        again = client.get("k", if_none_match=seen.revision)
        if isinstance(again, NotModified):
            return again.revision
        done = client.txn([Compare("k", "mod", "=", 1)], [Put("k", b""), Range(prefix="k")])
        return len([r for r in done.results if isinstance(r, RangeResult)])
    except raftkv.PreconditionFailedError as error:
        return error.current_revision
    except raftkv.RaftkvError as error:
        print(error.key, error.status)
        return None
"""
MISTAKES = """\
import raftkv
raftkv.Klient
raftkv.get("k")
from raftkv import Nothing
raftkv.Client().get("k").revision
raftkv.Client().get("k", if_none_match=1).value
"""


def test_a_type_checker_agrees_with_what_happens(tmp_path: Path) -> None:
    """A user's program that runs is right by mypy's strict rules; one that cannot run is not."""
    (tmp_path / "right.py").write_text(USERS_PROGRAM)
    (tmp_path / "wrong.py").write_text(MISTAKES)
    (tmp_path / "mypy.ini").write_text("[mypy]\nstrict = True\n")
    said, _, _ = mypy.run(
        [
            *("--config-file", str(tmp_path / "mypy.ini"), "--cache-dir", str(tmp_path / "cache")),
            *("--hide-error-context", "--no-error-summary"),
            *(str(tmp_path / name) for name in ("right.py", "wrong.py")),
        ]
    )
    lines = said.splitlines()
    assert {line.split(":")[0] for line in lines} == {str(tmp_path / "wrong.py")}, said
    assert [line.split(":")[1] for line in lines] == ["2", "3", "4", "5", "6", "6"], said
