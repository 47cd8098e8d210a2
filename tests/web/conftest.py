"""Fixtures of the front end's tests: every API test runs over both carriers."""

from collections.abc import Callable, Iterator

import pytest

from raftkv.rpc.web_config import Limits, WebConfig
from tests.support.fake_engine import FakeEngine
from tests.web.carriers import AsgiCarrier, Carrier, WsgiCarrier
from tests.web.documented import DocumentedCarrier

LIMITS = Limits(
    value_bytes_max=4096,
    batch_bytes_max=16384,
    batch_operations_max=20,
    txn_operations_max=8,
    scan_limit_default=10,
    scan_limit_max=50,
    page_bytes_max=2048,
)


@pytest.fixture
def engine() -> FakeEngine:
    """Return an engine without any key."""
    return FakeEngine()


@pytest.fixture(params=[WsgiCarrier, AsgiCarrier], ids=["wsgi", "asgi"])
def make_api(
    request: pytest.FixtureRequest, engine: FakeEngine
) -> Iterator[Callable[[WebConfig], Carrier]]:
    """Return a maker of the API over one of its carriers, with any settings.

    Whatever a test asks, and is answered, must be as the API's own document says.
    """
    made: list[Carrier] = []

    def make(config: WebConfig) -> Carrier:
        made.append(request.param(engine, config))
        return DocumentedCarrier(made[-1], config.limits)

    yield make
    for carrier in made:
        carrier.close()


@pytest.fixture
def api(make_api: Callable[[WebConfig], Carrier]) -> Carrier:
    """Return the API over one of its carriers, with small limits and no tokens."""
    return make_api(WebConfig(node_name="n1", limits=LIMITS))
