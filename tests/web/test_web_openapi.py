"""The OpenAPI document is true: schemathesis holds the running application against it."""

import re
from dataclasses import replace
from typing import Any

import flask
import hypothesis
import pytest
import schemathesis
from schemathesis.checks import CheckContext
from schemathesis.core.failures import AcceptedNegativeData
from schemathesis.core.transport import Response
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    negative_data_rejection,
    positive_data_acceptance,
)

from raftkv.rpc.web_config import WebConfig
from raftkv.web.api.openapi import openapi_document
from tests.support.fake_engine import FakeEngine
from tests.web.carriers import Carrier, WsgiCarrier
from tests.web.conftest import LIMITS
from tests.web.documented import Document


def _app() -> flask.Flask:
    return WsgiCarrier(FakeEngine(), WebConfig(node_name="n1", limits=LIMITS)).app


_config = schemathesis.Config.from_dict(
    {
        "seed": 1,
        "generation": {"max-examples": 40, "database": "none"},
        "checks": {
            # What is too long is 413, which is a refusal, too.
            "negative_data_rejection": {"expected-statuses": [400, 404, 405, 406, 413, 415]}
        },
    }
)
schema = schemathesis.openapi.from_wsgi("/openapi.json", _app(), config=_config)


# What a JSON schema cannot say: parameters that exclude or need each other, lengths in bytes.
_INEXPRESSIBLE = re.compile(
    "exclude|goes with|below its low|must be after|must not be before|has at most|"
    "at most [0-9]+ operations are|larger than|bad cursor|got `float`|"
    "whole number from|If-Match must be"  # a pattern counts digits, not values
)


def _valid_requests_are_accepted(
    _ctx: CheckContext, response: Response, case: schemathesis.Case[Any]
) -> None:
    """Replace schemathesis' own check, which cannot know of such rules."""
    # Its phase "coverage" calls header values valid that do not match their pattern.
    meta = case.meta
    if meta is None or not meta.generation.mode.is_positive or meta.phase.name != "fuzzing":
        return
    if response.status_code in {400, 406, 413, 415} and response.content:
        detail = response.json()["detail"]
        assert _INEXPRESSIBLE.search(detail), detail


def _invalid_requests_are_refused(
    ctx: CheckContext, response: Response, case: schemathesis.Case[Any]
) -> None:
    """Ask schemathesis' own check, except that no server refuses headers that it does not know."""
    try:
        negative_data_rejection(ctx, response, case)
    except AcceptedNegativeData as error:
        if "in header - object with unexpected properties" not in error.message:
            raise


# A JSON schema says nothing about lines or MessagePack; test_web_batches.py tests those.
@pytest.mark.filterwarnings("ignore:Skipped test cases with unsupported payload")
@schema.parametrize()
@hypothesis.settings(max_examples=40, derandomize=True, deadline=None, database=None)
def test_server_keeps_to_its_document(case: schemathesis.Case[Any]) -> None:
    """Whatever is asked, well-formed or not, the answer is one that the document describes."""
    case.call_and_validate(
        additional_checks=[_valid_requests_are_accepted, _invalid_requests_are_refused],
        excluded_checks=[positive_data_acceptance, negative_data_rejection],
    )


def test_recorded_answers_are_held_against_the_document(api: Carrier) -> None:
    """The comparison that all API tests go through sees a header, body or status that differs."""
    document = Document(openapi_document(LIMITS))
    put = api("PUT", b"/v1/kv/k", body=b"v")
    asked: tuple[str, bytes, dict[str, str], bytes] = ("PUT", b"/v1/kv/k", {}, b"v")
    document.check(*asked, put)
    for changed in (
        replace(put, headers={**put.headers, "etag": '"0"'}),
        replace(put, headers={**put.headers, "raftkv-age-ms": "5"}),
        replace(put, headers={n: v for n, v in put.headers.items() if n != "raftkv-node"}),
        replace(put, body=put.body.replace(b"version", b"versions")),
        replace(put, status=202),
    ):
        with pytest.raises(AssertionError):
            document.check(*asked, changed)
    with pytest.raises(AssertionError):
        document.check("PUT", b"/v1/kv/k", {"If-Match": '"0"'}, b"v", put)
    with pytest.raises(AssertionError):
        document.check("PUT", b"/v1/kv/k?a=b", {}, b"v", put)


def test_document_is_served(api: Carrier) -> None:
    """The document lists every route of the application; of the pages only the first."""
    answer = api("GET", b"/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    document: dict[str, Any] = answer.json()
    assert document["openapi"].startswith("3.1")
    documented = {
        (path.replace("{", "<").replace("}", ">"), method.upper())
        for path, item in document["paths"].items()
        for method in item
        if method != "parameters"
    }
    routes = {
        (
            rule.rule.replace("<key:key>", "<key>").replace("<shard:shard>", "<shard>"),
            method,
        )
        for rule in _app().url_map.iter_rules()
        for method in rule.methods or ()
        if not rule.rule.startswith("/static/") and method != "HEAD"
        if not rule.endpoint.startswith("pages.") or rule.rule == "/"
    }
    assert documented - {("/v1/kv/<key>", "HEAD")} == routes


def test_negative_data_is_generated() -> None:
    """The comparison includes requests that break the document on purpose."""
    modes = schema.config.generation.modes
    assert GenerationMode.NEGATIVE in modes


@pytest.mark.parametrize("limit", ["value_bytes_max", "scan_limit_max", "timeout_ms_max"])
def test_document_says_this_servers_limits(api: Carrier, limit: str) -> None:
    """The numbers in the document are those of the configuration."""
    assert str(getattr(LIMITS, limit)).encode() in api("GET", b"/openapi.json").body
