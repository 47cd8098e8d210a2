"""What an answer becomes when there is no room for what it has read."""

import pytest

from raftkv.core.operations import GetResult, KeyValue, PutResult, RangeResult, TxnResult
from raftkv.rpc.messages import BatchResult, Failure, Response
from raftkv.rpc.sizes import without_values

ENTRY = KeyValue(b"k", b"v" * 1000, 1, 1, 1)
BUSY = Failure("busy", "no room", definite=True, retry_after_ms=7)
WROTE = TxnResult(succeeded=True, revision=5, results=(PutResult(5, 1), GetResult(ENTRY)))


@pytest.mark.parametrize(
    "response",
    [
        GetResult(ENTRY),
        RangeResult((ENTRY,), more=False),
        TxnResult(succeeded=True, revision=None, results=(GetResult(ENTRY),)),
        TxnResult(succeeded=False, revision=None, results=(GetResult(ENTRY),)),
    ],
)
def test_what_has_only_read_is_refused_for_certain(response: Response) -> None:
    """It may be asked again: nothing was written, in a transaction either."""
    assert without_values(response, "no room", 7) == BUSY


@pytest.mark.parametrize("response", [PutResult(5, 1), WROTE])
def test_what_has_written_is_said(response: Response) -> None:
    """Nobody is left in doubt about a write."""
    assert without_values(response, "no room", 7) == response


def test_members_of_a_batch_are_told_each_by_itself() -> None:
    """Its writes are said, its reads refused."""
    batch = BatchResult((PutResult(5, 1), GetResult(ENTRY)))
    assert without_values(batch, "no room", 7) == BatchResult((PutResult(5, 1), BUSY))
