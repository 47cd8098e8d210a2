"""One declaration of a body: what follows for MessagePack, JSON and the OpenAPI document."""

import base64
import dataclasses
from typing import Annotated, Any

import jsonschema_rs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, Meta, Struct, UnsetType

from raftkv.client.types import BatchOperation, TxnOperation
from raftkv.core.operations import KeyWrite
from raftkv.rpc.messages import BatchRequest
from raftkv.rpc.web_config import Limits
from raftkv.web.api.bodies import BatchMember, TxnMember, only_in_batch, parse_batch
from raftkv.web.api.exchange import HttpRequest
from raftkv.web.api.openapi import openapi_document
from raftkv.web.api.problems import HttpError
from raftkv.web.api.requests import Plan
from raftkv.web.api.schemas import Length, arms, bytes_of, json_form, schema_of, tags_of


class Append(Struct, tag="append", tag_field="op", forbid_unknown_fields=True):
    """Add bytes to the end of a value."""

    key: Annotated[bytes, Length(1, 3)]
    value: bytes
    times: Annotated[int, Meta(ge=1, le=9)] | UnsetType = UNSET


_decoder: msgspec.json.Decoder[Append] = msgspec.json.Decoder(json_form(Append))


def of_json(document: dict[str, Any]) -> Append:
    """Return what the decoder makes of a document."""
    return _decoder.decode(msgspec.json.encode(document))


def test_bytes_are_text_or_base64_in_json() -> None:
    """A declared member of type bytes is read from either of its two members in JSON."""
    plain = of_json({"op": "append", "key": "k", "value": "ü"})
    encoded = of_json({"op": "append", "key_base64": "aw==", "value_base64": "/w=="})
    assert [bytes_of(plain, name) for name in ("key", "value")] == [b"k", "ü".encode()]
    assert [bytes_of(encoded, name) for name in ("key", "value")] == [b"k", b"\xff"]
    assert bytes_of(of_json({"op": "append"}), "key") is None
    with pytest.raises(HttpError, match="exclude each other"):
        bytes_of(of_json({"op": "append", "key": "k", "key_base64": "aw=="}), "key")


@pytest.mark.parametrize(
    ("document", "fits"),
    [
        ({"key": "k", "value": ""}, True),
        ({"key_base64": "a2s=", "value_base64": ""}, True),
        ({"key": "k", "value": "v", "times": 9}, True),
        ({"key": "k", "value": "v", "times": 10}, False),
        ({"key": "k", "value": "v", "more": 1}, False),
        ({"key": 1, "value": "v"}, False),
        ({"key": "k", "value_base64": "?"}, False),
    ],
)
def test_schema_says_what_the_decoder_takes(document: dict[str, Any], fits: bool) -> None:  # noqa: FBT001 -- a parameter of the test
    """Types, bounds and unknown members are refused by the decoder and by the schema alike."""
    document = {"op": "append", **document}
    assert jsonschema_rs.is_valid(schema_of(Append), document) == fits
    if fits:
        assert of_json(document).times == document.get("times", UNSET)
    else:
        with pytest.raises(msgspec.ValidationError):
            of_json(document)


@pytest.mark.parametrize(
    "document",
    [
        {"value": "v"},
        {"key": "", "value": "v"},
        {"key": "long", "value": "v"},
        {"key_base64": "bG9uZ2Vy", "value": "v"},
        {"key": "k", "key_base64": "aw==", "value": "v"},
    ],
)
def test_schema_says_what_readers_of_bytes_refuse(document: dict[str, Any]) -> None:
    """The length of bytes, and that there is exactly one of their two members, is in the schema."""
    assert not jsonschema_rs.is_valid(schema_of(Append), {"op": "append", **document})


def test_a_transaction_documents_no_member_that_it_refuses() -> None:
    """What is marked as a batch's only is in the schema of a batch's operation and of no other."""
    schemas = openapi_document(Limits())["components"]["schemas"]
    for operation in arms(TxnMember):
        name = operation.__name__.removesuffix("Body")
        excluded = {member.name for member in only_in_batch(operation)}
        assert not excluded & set(schemas["Txn" + name]["properties"])
        if operation in arms(BatchMember):
            assert excluded <= set(schemas["Batch" + name]["properties"])


_options: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "put": st.fixed_dictionaries(
        {"value": st.binary(max_size=9)},
        optional={"if_absent": st.booleans(), "idempotency_key": st.sampled_from(["a", "~"])},
    ),
    "delete": st.fixed_dictionaries({}, optional={"if_revision": st.integers(1, 2**53 - 1)}),
    "get": st.fixed_dictionaries({}, optional={"consistency": st.just("stale")}),
}


@given(st.data())
def test_both_forms_mean_the_same(data: st.DataObject) -> None:
    """An operation asks the engine for the same, whether it came as MessagePack or as JSON."""
    op = data.draw(st.sampled_from(sorted(_options)))
    member: dict[str, Any] = {"op": op, "key": data.draw(st.binary(min_size=1, max_size=9))}
    member |= data.draw(_options[op])
    texts = {
        name + "_base64" if isinstance(value, bytes) else name: (
            base64.b64encode(value).decode() if isinstance(value, bytes) else value
        )
        for name, value in member.items()
    }
    packed = _asked(b"application/msgpack", msgspec.msgpack.encode({"operations": [member]}))
    assert packed == _asked(b"application/json", msgspec.json.encode({"operations": [texts]}))
    assert len(packed.operations) == 1


def _asked(media_type: bytes, body: bytes) -> BatchRequest:
    http = HttpRequest("POST", b"", {b"content-type": media_type}, body=body)
    plan = parse_batch(http, Limits())
    assert isinstance(plan, Plan)
    assert isinstance(plan.request, BatchRequest)
    return plan.request


@pytest.mark.parametrize(
    ("sent", "taken"), [(BatchOperation, BatchMember), (TxnOperation, TxnMember)]
)
def test_the_client_sends_what_servers_take(sent: object, taken: object) -> None:
    """The client's operations are called as the server's, and have no member that those lack."""
    members = {
        str(body.__struct_config__.tag): {field.name for field in msgspec.structs.fields(body)}
        for body in arms(taken)
    }
    operations = {
        kind.__name__.lower(): {field.name for field in dataclasses.fields(kind)}
        for kind in arms(sent)
    }
    assert operations.keys() == members.keys()
    assert all(operations[op] <= members[op] for op in operations)


def test_a_batch_takes_every_write_of_one_key() -> None:
    """What the core can do to one key, clients can ask for."""
    assert {kind.__name__.lower() for kind in arms(KeyWrite)} <= set(tags_of(BatchMember))
