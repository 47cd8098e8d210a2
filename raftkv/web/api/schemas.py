"""What follows from the declaration of a body: its form in JSON, and its JSON schema.

A body is declared once, as the struct that its MessagePack is decoded into. JSON has no bytes:
there a member ``x`` of type bytes is text, or base64 under the name ``x_base64`` (see
:mod:`raftkv.web.api.encoding`). What :class:`msgspec.Meta` bounds, the decoders of both forms
enforce and the schema says.
"""

import functools
import operator
import types
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from typing import Annotated, Any, NamedTuple, TypeVar, Union, get_args, get_origin

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from raftkv.web.api.problems import invalid

REF = "#/components/schemas/"

BASE64 = {
    "type": "string",
    "contentEncoding": "base64",
    "pattern": "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$",
}
"""msgspec decodes base64 for a field of type bytes, and takes no other."""

_Declared = TypeVar("_Declared", bound=Struct)


class Length(NamedTuple):
    """Marks bytes with their bounds, for the schema; whoever reads the bytes enforces them.

    A value of too many bytes is answered 413, which no decoder does.
    """

    bytes_min: int
    bytes_max: int | None = None

    def of_text(self) -> dict[str, int]:
        """Bound the characters of text: it has at most as many as bytes."""
        return _given(minLength=self.bytes_min, maxLength=self.bytes_max)

    def of_base64(self) -> dict[str, int]:
        """Bound the characters of base64."""
        most = None if self.bytes_max is None else 4 * -(-self.bytes_max // 3)
        return _given(minLength=4 * -(-self.bytes_min // 3), maxLength=most)


def _given(**bounds: int | None) -> dict[str, int]:
    return {name: bound for name, bound in bounds.items() if bound}


def marks(kind: object) -> Iterator[object]:
    """Yield what an annotation says beside the types, of all arms of a union."""
    if get_origin(kind) is Annotated:
        inner, *own = get_args(kind)
        yield from own
        yield from marks(inner)
    elif _is_union(kind):
        for arm in get_args(kind):
            yield from marks(arm)


def arms(kind: object) -> tuple[Any, ...]:
    """Return the types of a union, or the one type."""
    if get_origin(kind) is Annotated:
        return arms(get_args(kind)[0])
    if _is_union(kind):
        return tuple(one for arm in get_args(kind) for one in arms(arm))
    return (kind,)


def _is_union(kind: object) -> bool:
    return get_origin(kind) in (Union, types.UnionType)


# --- the form in JSON ---------------------------------------------------------------------------


@functools.cache
def json_form(declared: type[_Declared]) -> type[_Declared]:
    """Return the struct for JSON.

    It is typed as the declaration, whose members it has but for bytes; :func:`bytes_of` reads
    those from either.
    """
    config = declared.__struct_config__
    fields: list[tuple[str, Any, Any]] = []
    renamed = {}
    for field in msgspec.structs.fields(declared):
        renamed[field.name] = field.encode_name
        if bytes in arms(field.type):
            fields += _text_and_base64(field.name, field.type)
        else:
            default: dict[str, Any] = {
                "default": field.default,
                "default_factory": field.default_factory,
            }
            fields.append((field.name, json_type(field.type), msgspec.field(**default)))
    return msgspec.defstruct(  # type: ignore[return-value]
        declared.__name__,
        fields,
        namespace={"__doc__": declared.__doc__},
        rename=renamed,
        tag=config.tag,
        tag_field=config.tag_field,
        forbid_unknown_fields=config.forbid_unknown_fields,
        kw_only=True,
    )


def _text_and_base64(name: str, kind: object) -> list[tuple[str, Any, Any]]:
    length = next((mark for mark in marks(kind) if isinstance(mark, Length)), Length(0))
    text = Annotated[str, Meta(extra_json_schema=length.of_text())]
    base64 = Annotated[bytes, Meta(extra_json_schema={**BASE64, **length.of_base64()})]
    kept = [arm for arm in arms(kind) if arm not in (bytes, UnsetType)]
    return [
        (name, functools.reduce(operator.or_, (text, *kept, UnsetType)), UNSET),
        (name + "_base64", base64 | UnsetType, UNSET),
    ]


def json_type(kind: Any) -> Any:
    """Return an annotation with the forms in JSON of the structs in it."""
    if isinstance(kind, type) and issubclass(kind, Struct):
        return json_form(kind)
    if get_origin(kind) is list:
        return list[json_type(get_args(kind)[0])]  # type: ignore[misc]
    if get_origin(kind) is Annotated:
        inner, *own = get_args(kind)
        return Annotated[(json_type(inner), *own)]
    if _is_union(kind):
        return functools.reduce(operator.or_, map(json_type, get_args(kind)))
    return kind


def bytes_of(member: Struct, name: str) -> bytes | None:
    """Return the bytes called ``name`` of a member of either form; None if they are not there.

    Raises:
        HttpError: They are there as text and as base64.
    """
    plain = getattr(member, name)
    encoded = getattr(member, name + "_base64", UNSET)
    if encoded is not UNSET:
        if plain is not UNSET:
            raise invalid(f"{name} and {name}_base64 exclude each other")
        return bytes(encoded)
    if plain is UNSET:
        return None
    return plain.encode() if isinstance(plain, str) else bytes(plain)


def tags_of(members: object) -> tuple[str, ...]:
    """Return the tags of the structs of a union."""
    return tuple(str(one.__struct_config__.tag) for one in arms(members))


# --- the schema ---------------------------------------------------------------------------------


def either(name: str) -> dict[str, Any]:
    """Return the rule for bytes: exactly one of the text and the base64 member."""
    return {"oneOf": [{"required": [name]}, {"required": [name + "_base64"]}]}


def schema_of(declared: type[Struct], *, without: AbstractSet[str] = frozenset()) -> dict[str, Any]:
    """Return the schema of the form in JSON; it refers to those of the structs in it.

    ``without`` names members to leave out, and the rules that are about them.
    """
    form = json_form(declared)
    _, schemas = msgspec.json.schema_components([form], ref_template=REF + "{name}")
    schema: dict[str, Any] = schemas[form.__name__]
    del schema["title"]
    members = schema["properties"].items()
    schema["properties"] = {name: member for name, member in members if name not in without}
    schema["required"] = [name for name in schema["required"] if name not in without]
    fields = msgspec.structs.fields(declared)
    rules = [either(f.name) for f in fields if f.required and bytes in arms(f.type)]
    more: dict[str, dict[str, Any]] = getattr(declared, "RULES", {})
    rules += [rule for name, rule in more.items() if name not in without]
    if rules:
        schema["allOf"] = rules
    return schema
