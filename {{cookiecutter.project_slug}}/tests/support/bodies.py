"""Requests that an OpenAPI document allows, made from its JSON schemas.

Texts are random, because a column may be unique; everything else is as small as its schema allows.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from urllib.parse import quote
from uuid import uuid4

from tests.support.accounts import PASSWORD

Schema = Mapping[str, Any]

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data"
TEXT_LENGTH = 12
MAX_TEXT_LENGTH = 1_000_000
# A character or a class of a regular expression, and its quantifier.
ATOM = re.compile(r"(\\.|\[(?:\\.|[^\]\\])+\]|[^\\\[\]()|])(\{\d+(?:,\d*)?\}|[*+?])?")
OPTIONAL_GROUP = re.compile(r"\((?:\?:)?[^()]*\)(?:[*?]|\{0,\d*\})")
GROUP = re.compile(r"\((?:\?:)?([^()|]*)(?:\|[^()]*)?\)(?![*+?{])")
CHARACTERS = "a0A" + "".join(map(chr, range(32, 127)))
FORMATS: dict[str, Callable[[], str]] = {
    "date": lambda: datetime.now(UTC).date().isoformat(),
    "date-time": lambda: datetime.now(UTC).isoformat(timespec="seconds"),
    "duration": lambda: "PT1S",
    "email": lambda: f"{uuid4().hex[:8]}@example.com",
    "password": lambda: PASSWORD,
    "time": lambda: "12:00:00",
    "uri": lambda: f"https://example.com/{uuid4().hex[:8]}",
    "uuid": lambda: str(uuid4()),
}


class UnmakeableError(Exception):
    """A schema for which no value is known."""


def make_request(
    document: Schema, method: str, path: str, known: Mapping[str, object], given: object = None
) -> dict[str, Any]:
    """Return the arguments of httpx except the URL: the required parameters, and the body in its media type.

    `known` maps the names of fields and parameters to their values. `given` is a whole body or, for an object, fields
    that replace or complete the generated fields. Raises UnmakeableError.
    """
    operation = document["paths"][path][method]
    make = Maker(document, known)
    request: dict[str, Any] = {
        kind: {
            parameter["name"]: str(make.value(parameter["schema"], parameter["name"]))
            for parameter in operation.get("parameters", [])
            if parameter["in"] == place and parameter["required"]
        }
        for kind, place in (("params", "query"), ("headers", "header"))
    }
    content = operation.get("requestBody", {}).get("content", {})
    if not content:
        return request
    media_type = JSON if JSON in content else next(iter(content))
    schema = content[media_type].get("schema", {})
    if media_type == MULTIPART:
        return request | make.multipart(schema, given, content[media_type].get("encoding", {}))
    if media_type in (JSON, FORM):
        return request | {"json" if media_type == JSON else "data": make.body(schema, given)}
    request["headers"]["Content-Type"] = media_type
    return request | {"content": b"x" if given is None else given}


def fill_path(path: str, ids: Mapping[str, object]) -> str:
    return re.sub(r"\{(\w+)\}", lambda match: quote(str(ids[match[1]]), safe=""), path)


def list_fields(value: object) -> Iterator[str]:
    """Yield the names of all fields of a body, including nested fields."""
    if isinstance(value, dict):
        yield from value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from list_fields(item)


@dataclass(frozen=True)
class Maker:
    document: Schema
    # Values of fields, by their names.
    known: Mapping[str, object] = field(default_factory=dict)

    def body(self, schema: Schema, given: object) -> object:
        if given is not None and not isinstance(given, dict):
            return given
        made = Maker(self.document, {**self.known, **(given or {})}).value(schema)
        return {**made, **(given or {})} if isinstance(made, dict) else made

    def multipart(self, schema: Schema, given: object, encoding: Schema) -> dict[str, object]:
        """Return `data` and `files` for httpx, with optional files: httpx sends a form without files as URL-encoded."""

        def make_file(name: str) -> tuple[str, bytes, str]:
            media_types = encoding.get(name, {}).get("contentType", "text/plain")
            return "file", b"x", media_types.partition(",")[0]

        schema, given = self.resolve(schema), given if isinstance(given, dict) else {}
        files = {name for name, field in schema.get("properties", {}).items() if _is_file(field)}
        texts = {**schema, "required": [name for name in schema.get("required", []) if name not in files]}
        return {
            "data": self.body(texts, {name: value for name, value in given.items() if name not in files}),
            "files": {name: given.get(name, make_file(name)) for name in files},
        }

    def value(self, schema: Schema, name: str = "", within: tuple[str, ...] = ()) -> Any:  # noqa: ANN401  # whatever the schema describes
        """Return a value of a schema; `within` holds the references that led to it, to stop endless recursion."""
        if name in self.known:
            return self.known[name]
        if schema.get("$ref") in within:
            raise UnmakeableError(f"{name} contains itself")
        within = (*within, schema["$ref"]) if "$ref" in schema else within
        schema = self.resolve(schema)
        if options := [*schema.get("anyOf", []), *schema.get("oneOf", [])]:
            return self.choice(schema, options, name, within)
        if "const" in schema or "enum" in schema:
            return schema["const"] if "const" in schema else schema["enum"][0]
        match schema.get("type"):
            case "object":
                fields = schema.get("properties", {})
                return {each: self.value(fields.get(each, {}), each, within) for each in schema.get("required", [])}
            case "array":
                items = [*schema.get("prefixItems", [])]
                items += [schema.get("items", {})] * (schema.get("minItems", 0) - len(items))
                return [self.value(item, name.removesuffix("s"), within) for item in items]
            case "integer" | "number":
                return _make_number(schema, name)
            case "boolean":
                return False
            case "null":
                return None
        return _make_text(schema, name)

    def choice(self, schema: Schema, options: list[Schema], name: str, within: tuple[str, ...]) -> Any:  # noqa: ANN401  # see value
        # If null is allowed, it is the simplest value: it refers to no other item.
        if {"type": "null"} in options:
            return None
        problems = []
        for option in options:
            try:
                value = self.value(option, name, within)
            except UnmakeableError as error:
                problems.append(str(error))
                continue
            if tag := schema.get("discriminator", {}).get("propertyName"):
                # The discriminator is required even if its field has a default.
                value[tag] = self.value(self.resolve(option)["properties"][tag], tag)
            return value
        raise UnmakeableError("; ".join(problems))

    def resolve(self, schema: Schema) -> Schema:
        """Follow a reference, and join the parts of `allOf`."""
        if "$ref" in schema:
            _, _, kind, name = schema["$ref"].split("/")
            target = self.document["components"][kind][name]
            return self.resolve({**target, **{key: value for key, value in schema.items() if key != "$ref"}})
        joined = dict(schema)
        for part in map(self.resolve, joined.pop("allOf", [])):
            required = [*joined.get("required", []), *part.get("required", [])]
            properties = {**part.get("properties", {}), **joined.get("properties", {})}
            joined = {**part, **joined, "required": required, "properties": properties}
        return joined


def _is_file(schema: Schema) -> bool:
    inner = [*schema.get("anyOf", []), schema.get("items", {})]
    return schema.get("format") == "binary" or "contentMediaType" in schema or any(map(_is_file, filter(None, inner)))


def _make_number(schema: Schema, name: str) -> int | float:
    bounds = {key: Decimal(str(value)) for key, value in schema.items() if isinstance(value, int | float)}
    step = bounds.get("multipleOf", Decimal(1))
    low = bounds.get("minimum", bounds.get("exclusiveMinimum", Decimal(0)))
    high = bounds.get("maximum", bounds.get("exclusiveMaximum", low + step))
    nearest = [edge // step * step + offset * step for edge in (low, high) for offset in (-1, 0, 1)]
    middle = [(low + high) / 2] if schema["type"] == "number" else []
    for value in (*sorted(nearest, key=abs), *middle):
        if (
            bounds.get("minimum", value) <= value <= bounds.get("maximum", value)
            and value not in (bounds.get("exclusiveMinimum"), bounds.get("exclusiveMaximum"))
            and bounds.get("exclusiveMinimum", value) <= value <= bounds.get("exclusiveMaximum", value)
            and ("multipleOf" not in bounds or value % step == 0)
        ):
            return int(value) if value == int(value) else float(value)
    raise UnmakeableError(f"no number is known for {name}: {dict(schema)}")


def _make_text(schema: Schema, name: str) -> str:
    least, most = int(schema.get("minLength", 0)), int(schema.get("maxLength", MAX_TEXT_LENGTH))
    length = max(least, min(most, TEXT_LENGTH))
    texts: list[str] = [(uuid4().hex * (length // 32 + 1))[:length]]
    if schema.get("format") in FORMATS:
        texts = [FORMATS[schema["format"]]()]
    try:
        if "pattern" in schema:
            texts = [_match(schema["pattern"], repeats) for repeats in (TEXT_LENGTH, *range(1, length + 1), 0)]
        return next(text for text in texts if least <= len(text) <= most and re.search(schema.get("pattern", ""), text))
    except (StopIteration, re.error):
        raise UnmakeableError(f"no text is known for {name}: {dict(schema)}") from None


def _match(pattern: str, repeats: int) -> str:
    """Return a text for a simple pattern; quantifiers repeat `repeats` times, or the nearest allowed number."""
    while OPTIONAL_GROUP.search(pattern) or GROUP.search(pattern):
        pattern = GROUP.sub(r"\1", OPTIONAL_GROUP.sub("", pattern))
    text = ""
    for atom, quantifier in ATOM.findall(pattern.removeprefix("^").removesuffix("$")):
        least, most = _bounds(quantifier)
        # Random characters first, if the class contains them.
        matching = [character for character in uuid4().hex + CHARACTERS if re.fullmatch(atom, character)]
        count = max(least, min(most, repeats))
        text += "".join((matching * count)[:count])
    return text


def _bounds(quantifier: str) -> tuple[int, int]:
    if quantifier.startswith("{"):
        least, comma, most = quantifier[1:-1].partition(",")
        return int(least), int(most or MAX_TEXT_LENGTH) if comma else int(least)
    return {"": (1, 1), "?": (0, 0)}.get(quantifier, (int(quantifier == "+"), MAX_TEXT_LENGTH))
