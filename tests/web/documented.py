"""Holds whatever the API was asked, and answered, against its own OpenAPI document.

Every API test goes through this: what they ask and get are the recorded answers.
"""

import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote_to_bytes

import jsonschema_rs
from carriers import Answer, Carrier, Headers

from raftkv.rpc.web_config import Limits
from raftkv.web.api.openapi import openapi_document

_ONE_DIGIT = re.compile(r"[+-]?\d+")
_OPTIONAL_SPACE = re.compile(r"\s*;\s*")  # RFC 9110, section 5.6.3
_PAGES = re.compile(r"/(shards|nodes|ring|explain|static)\b")


def unchecked(api: Carrier) -> Carrier:
    """The carrier itself, for answers that no engine gives."""
    return api.unchecked if isinstance(api, DocumentedCarrier) else api


class DocumentedCarrier:
    """A carrier that fails where the document and the server differ."""

    def __init__(self, carrier: Carrier, limits: Limits) -> None:
        self.unchecked = carrier
        self._document = Document(openapi_document(limits))

    def __call__(  # noqa: D102 -- see Carrier
        self, method: str, target: bytes, headers: Headers | None = None, body: bytes = b""
    ) -> Answer:
        answer = self.unchecked(method, target, headers or {}, body)
        self._document.check(method, target, headers or {}, body, answer)
        return answer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unchecked, name)


class Document:
    """An OpenAPI document that requests and answers can be held against."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._paths = document["paths"]
        self._components = document["components"]
        self._validators: dict[str, Any] = {}
        routes = sorted(self._paths, key=lambda path: "{" in path)
        self._routes = [(_pattern(path), path) for path in routes]

    def check(
        self, method: str, target: bytes, headers: Headers, body: bytes, answer: Answer
    ) -> None:
        """Fail unless the answer is documented, and the request, too, if it was taken."""
        raw_path, _, query = target.partition(b"?")
        path = unquote_to_bytes(raw_path).decode("latin-1")
        item = next((self._paths[name] for regex, name in self._routes if regex(path)), None)
        operation = None if item is None else item.get(method.lower())
        if operation is None:
            assert answer.status >= 400 or _PAGES.match(path) or method == "HEAD", (path, answer)
            return
        self._check_answer(operation, answer, method)
        if answer.status < 400:
            self._check_request(operation, headers, query, body)

    # --- answers ---

    def _check_answer(self, operation: Mapping[str, Any], answer: Answer, method: str) -> None:
        described = operation["responses"].get(str(answer.status))
        assert described is not None, f"{answer.status} is not documented: {answer}"
        told = {name.lower(): header for name, header in described.get("headers", {}).items()}
        for name, described_header in told.items():
            header = self._resolved(described_header)
            value = answer.headers.get(name)
            if value is not None:
                self._fits(header["schema"], _typed(value, header["schema"]), f"header {name}")
            else:
                assert not header.get("required"), f"the header {name} is missing: {answer}"
        for name in answer.headers:
            ours = name in {"etag", "retry-after", "x-request-id"} or name.startswith("raftkv-")
            assert name in told or not ours, f"the header {name} is not documented: {answer}"
        content = described.get("content")
        if method == "HEAD" or content is None:
            assert method == "HEAD" or not answer.body, answer
            return
        media_type = answer.headers["content-type"].partition(";")[0]
        assert media_type in content, f"{media_type} is not documented: {answer}"
        if media_type in {"application/json", "application/problem+json"}:
            self._fits(content[media_type]["schema"], answer.json(), "the answer")

    # --- requests ---

    def _check_request(
        self, operation: Mapping[str, Any], headers: Headers, query: bytes, body: bytes
    ) -> None:
        given = {name.lower(): value for name, value in headers.items()}
        asked = dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True))
        known = {(p["in"], p["name"].lower()): p for p in operation.get("parameters", ())}
        for name, value in given.items():
            if parameter := known.get(("header", name)):
                schema = parameter["schema"]
                meant = _OPTIONAL_SPACE.sub(";", value.strip())
                self._fits(schema, _typed(meant, schema), f"header {name}")
            else:
                conditional = name.startswith(("if-", "raftkv-", "idempotency"))
                assert not conditional, f"the header {name} is not documented"
        for name, value in asked.items():
            parameter = known.get(("query", name))
            assert parameter is not None, f"the parameter {name} is not documented"
            schema = parameter["schema"]
            self._fits(schema, _typed(value, schema), f"parameter {name}")
        media_type = given.get("content-type", "").partition(";")[0]
        content = operation.get("requestBody", {}).get("content", {})
        if media_type == "application/json" and media_type in content and body:
            self._fits(content[media_type]["schema"], json.loads(body), "the body")

    # --- inside ---

    def _resolved(self, thing: dict[str, Any]) -> dict[str, Any]:
        reference = thing.get("$ref")
        if reference is None:
            return thing
        _, _, kind, name = reference.split("/")
        resolved: dict[str, Any] = self._components[kind][name]
        return resolved

    def _fits(self, schema: dict[str, Any], value: object, what: str) -> None:
        key = json.dumps(schema, sort_keys=True)
        validator = self._validators.get(key)
        if validator is None:
            whole = {**schema, "components": self._components}
            validator = self._validators[key] = jsonschema_rs.Draft202012Validator(whole)
        error = next(validator.iter_errors(value), None)
        assert error is None, f"{what} {value!r} is not as documented: {error}"


def _pattern(path: str) -> Any:
    """Match a template of the document; a key takes all that is left."""
    regex = re.escape(path).replace(r"\{key\}", "(?s:.+)")
    return re.compile(re.sub(r"\\{[a-z]+\\}", "[^/]+", regex)).fullmatch


def _typed(value: str, schema: Mapping[str, Any]) -> object:
    """A header's or parameter's text as the schema's type."""
    if schema.get("type") == "integer" and _ONE_DIGIT.fullmatch(value):
        return int(value)
    return value
