"""Histories recorded from real systems get their known verdicts."""

from pathlib import Path

import pytest

from raftkv.check.checker import check
from raftkv.check.history import guess_format, read_history
from raftkv.check.models import MODELS
from raftkv.check.verdict import Verdict

ROOT = Path(__file__).parent / "histories"

VERDICTS = {"linearizable": Verdict.VALID, "not-linearizable": Verdict.VIOLATION}

MODEL_OF = {"jepsen-etcd": "cas-register", "kv": "kv"}

KNOWN = [
    tuple(line.split("\t"))
    for line in (ROOT / "verdicts.tsv").read_text(encoding="utf-8").splitlines()
]


def test_all_files_are_there() -> None:
    """A verdict for each file, a file for each verdict, and both kinds of verdict."""
    files = {str(path.relative_to(ROOT)) for path in ROOT.glob("*/*")}
    assert {name for name, _ in KNOWN} == files
    assert len(KNOWN) == 64
    assert {verdict for _, verdict in KNOWN} == set(VERDICTS)


@pytest.mark.parametrize(("name", "verdict"), KNOWN)
def test_a_recorded_history_gets_its_verdict(name: str, verdict: str) -> None:
    """Within seconds, though the history is of a real system under real faults."""
    path = ROOT / name
    format_name = guess_format(path)
    assert format_name == path.parent.name
    operations = read_history(path, format_name)
    result = check(operations, MODELS[MODEL_OF[format_name]], budget_s=10)
    assert result.verdict is VERDICTS[verdict]
    assert result.operations == len(operations)
