"""How many requests may wait for the engine, and what is said to those that may not."""

import pytest

from raftkv.rpc.web_config import Limits, WebConfig
from raftkv.web.serve.admission import Admission
from tests.support.fake_engine import FakeEngine
from tests.web.carriers import AsgiCarrier


class _Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def _answer(admission: Admission, clock: _Clock, *, per_s: int, seconds: float) -> None:
    """Let answers come at a rate while ``in_flight`` stays as it is."""
    for _ in range(int(per_s * seconds)):
        admission.leave(answered=True)
        admission.enter()
    clock.now_s += seconds


def _fill(admission: Admission) -> int:
    while not admission.is_full:
        admission.enter()
    return admission.in_flight


def test_idle_worker_takes_the_floor() -> None:
    """A worker that has answered nothing yet takes as many as the floor says."""
    assert _fill(Admission(wait_s=0.5, floor=10, ceiling=100, clock=_Clock())) == 10


def test_bound_follows_the_rate_of_answers() -> None:
    """What may wait is what was answered lately in the time that may be waited."""
    clock = _Clock()
    admission = Admission(wait_s=0.5, floor=10, ceiling=10_000, clock=clock)
    _fill(admission)
    _answer(admission, clock, per_s=2_000, seconds=1.0)
    assert _fill(admission) == 1_000
    _answer(admission, clock, per_s=400, seconds=1.0)
    assert admission.is_full
    while admission.in_flight > 200:
        assert admission.is_full
        admission.leave(answered=False)
    admission.leave(answered=False)
    assert not admission.is_full


def test_bound_never_exceeds_the_ceiling() -> None:
    """However fast the engine is, the ceiling holds."""
    clock = _Clock()
    admission = Admission(wait_s=0.5, floor=10, ceiling=100, clock=clock)
    _fill(admission)
    _answer(admission, clock, per_s=10_000, seconds=1.0)
    assert _fill(admission) == 100


def test_refusals_of_the_engine_do_not_raise_the_bound() -> None:
    """An engine that refuses quickly is not a fast one."""
    clock = _Clock()
    admission = Admission(wait_s=0.5, floor=10, ceiling=10_000, clock=clock)
    _fill(admission)
    for _ in range(5_000):
        admission.leave(answered=False)
        admission.enter()
    clock.now_s += 1.0
    assert _fill(admission) == 10


@pytest.mark.parametrize(
    ("method", "target", "body"),
    [
        ("PUT", b"/v1/kv/k", b"v"),
        ("PUT", b"/v1/kv/k", b"v" * 2**17),
        ("GET", b"/v1/kv/k", b""),
        ("GET", b"/v1/kv", b""),
        ("POST", b"/v1/batch", b'{"operations":[{"op":"get","key":"k"}]}'),
    ],
)
def test_full_worker_refuses_definitely(method: str, target: bytes, body: bytes) -> None:
    """Over the bound the answer is 503, definite, with Retry-After, and nothing stays held."""
    config = WebConfig(node_name="n1", limits=Limits(in_flight_max=0))
    api = AsgiCarrier(FakeEngine(), config)
    answer = api(method, target, {"content-length": str(len(body))}, body)
    assert (answer.status, answer.code, answer.definite) == (503, "overloaded", True)
    assert answer.headers["retry-after"] == "1"
    assert answer.headers["raftkv-node"] == "n1"
    api.close()
