"""Generated bodies are valid for the model that they are generated from."""

import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, Literal
from uuid import UUID, uuid4

import pytest
from fastapi import FastAPI, File, Form, Header, UploadFile
from pydantic import AnyUrl, AwareDatetime, EmailStr, Field, SecretStr, StringConstraints

from app.core.http.routing import FeatureRouter
from app.core.http.schemas import RequestModel
from app.core.http.uploads import Upload, accept
from app.core.security.schemas import NewPassword
from tests.support.bodies import Maker, UnmakeableError, fill_path, make_request
from tests.support.clients import open_client
from tests.support.databases import make_settings, unreachable_url


class Colour(StrEnum):
    RED = "red"


class Part(RequestModel):
    colour: Colour
    size: int = 1


class Cat(RequestModel):
    kind: Literal["cat"] = "cat"
    lives: int = Field(ge=1, le=9)


class Dog(RequestModel):
    kind: Literal["dog"]


class Tree(RequestModel):
    branches: list["Tree"]


Slug = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+(?:-[a-z0-9]+)*$", min_length=3, max_length=20)]


class Everything(RequestModel):
    text: str
    short: str = Field(max_length=3)
    long: str = Field(min_length=200)
    slug: Slug
    country: str = Field(pattern=r"^[A-Z]{2}$")
    article: str = Field(pattern=r"^(AB|CD)-\d{4}$")
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    phone: str = Field(pattern=r"^\+[1-9]\d{1,14}$")
    email: EmailStr
    password: NewPassword
    secret: SecretStr
    url: AnyUrl
    id: UUID
    day: date
    moment: datetime
    aware: AwareDatetime
    at: time
    lasts: timedelta
    flag: bool
    nothing: None
    number: int
    rating: int = Field(ge=3, le=5)
    dozens: int = Field(gt=20, multiple_of=12)
    below: int = Field(lt=-4)
    share: float = Field(gt=0, lt=1)
    amount: Decimal = Field(gt=0, max_digits=12, decimal_places=2)
    exact: Annotated[Decimal, Field(gt=0, multiple_of=Decimal("0.01"))]
    limited: Decimal = Field(ge=Decimal("0.5"), le=Decimal("0.75"))
    colour: Colour
    one_of_two: Literal["b", "a"]
    part: Part
    described: Part = Field(description="Siblings of a reference.")
    parts: list[Part] = Field(min_length=2)
    pair: tuple[int, str]
    extra: dict[str, int]
    perhaps: int | None
    either: int | str
    animal: Annotated[Cat | Dog, Field(discriminator="kind")]
    tree: Tree
    anything: Any
    optional: int = 1


def make_app(handler: Callable[..., object], path: str = "/things") -> FastAPI:
    app = FastAPI()
    app.post(path)(handler)
    return app


async def test_a_body_has_a_valid_value_for_each_required_field() -> None:
    def create(body: Everything) -> list[str]:
        return sorted(body.model_fields_set)

    app = make_app(create)

    async with open_client(app) as client:
        for _ in range(20):
            answer = await client.post("/things", **make_request(app.openapi(), "post", "/things", {}))

            assert answer.status_code == 200, answer.text
            assert answer.json() == sorted(Everything.model_fields.keys() - {"optional"})


async def test_known_values_replace_generated_values() -> None:
    def create(body: Everything) -> dict[str, object]:
        return body.model_dump(mode="json", include={"id", "number", "optional"})

    app, known = make_app(create), str(uuid4())
    request = make_request(app.openapi(), "post", "/things", {"id": known}, {"number": 7, "optional": 8})

    async with open_client(app) as client:
        answer = await client.post("/things", **request)

    assert answer.json() == {"id": known, "number": 7, "optional": 8}


async def test_form_with_files_is_multipart_and_includes_optional_files() -> None:
    async def create(
        title: Annotated[str, Form()],
        first: UploadFile,
        others: Annotated[list[UploadFile], File()],
        last: UploadFile | None = None,
    ) -> list[object]:
        return [first.filename, await first.read(), len(others), last is not None and await last.read(), len(title)]

    app = make_app(create)
    request = make_request(app.openapi(), "post", "/things", {}, {"first": ("a.png", b"PNG", "image/png")})

    async with open_client(app) as client:
        answer = await client.post("/things", **request)

    assert answer.json() == ["a.png", "PNG", 1, "x", 12]


async def test_an_upload_has_a_media_type_that_its_route_takes() -> None:
    async def create(file: Annotated[Upload, accept(max_bytes=10, media_types=("image/png", "image/gif"))]) -> str:
        return file.media_type + str([chunk async for chunk in file.chunks()])

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[dict[str, object]]:
        yield {"settings": make_settings(unreachable_url())}

    router = FeatureRouter(prefix="/things")
    router.add_api_route("", create, methods=["POST"])
    app = FastAPI(lifespan=lifespan)
    app.include_router(router)

    async with open_client(app) as client:
        answer = await client.post("/things", **make_request(app.openapi(), "post", "/things", {}))

    assert answer.json() == "image/png[b'x']"


async def test_required_parameters_are_sent_and_paths_are_filled() -> None:
    def create(name: str, year: int, x_key: Annotated[str, Header(min_length=3)], page: int = 1) -> list[object]:
        return [name, year, len(x_key), page]

    app = make_app(create, "/things/{name}")

    async with open_client(app) as client:
        path = fill_path("/things/{name}", {"name": "b c"})
        answer = await client.post(path, **make_request(app.openapi(), "post", "/things/{name}", {}))

    assert answer.json() == ["b c", 0, 12, 1]
    assert fill_path("/things/{name}", {"name": "a/b"}) == "/things/a%2Fb"


def test_body_of_any_other_media_type_is_sent_with_that_media_type() -> None:
    document: dict[str, Any] = {"paths": {"/x": {"put": {"requestBody": {"content": {"image/png": {}}}}}}}

    request = make_request(document, "put", "/x", {})

    assert (request["headers"], request["content"]) == ({"Content-Type": "image/png"}, b"x")


def test_all_of_schema_yields_required_fields_of_every_part() -> None:
    named = {"type": "object", "properties": {"name": {"const": "x"}}, "required": ["name"]}
    aged = {"properties": {"age": {"type": "integer", "minimum": 18}}, "required": ["age"]}

    assert Maker({}).value({"allOf": [named, aged]}) == {"name": "x", "age": 18}


def test_generated_texts_differ() -> None:
    for schema in ({"type": "string"}, {"type": "string", "pattern": "^[a-z0-9-]+$"}, {"format": "email"}):
        assert len({Maker({}).value(schema) for _ in range(10)}) == 10


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ({"type": "string", "pattern": r"^(?=.*\d)(?=.*[a-z])\w{8,}$"}, "no text is known for code"),
        ({"type": "string", "pattern": r"^\p{L}+$"}, "no text is known for code"),
        ({"type": "string", "format": "email", "maxLength": 5}, "no text is known for code"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "no number is known for code"),
    ],
)
def test_error_names_field_that_cannot_be_generated(schema: dict[str, object], problem: str) -> None:
    body = {"type": "object", "properties": {"code": schema}, "required": ["code"]}

    with pytest.raises(UnmakeableError, match=re.escape(problem)):
        Maker({}).value(body)


def test_error_names_field_that_contains_itself() -> None:
    reference = {"$ref": "#/components/schemas/Endless"}
    endless = {"type": "object", "properties": {"inner": reference}, "required": ["inner"]}

    with pytest.raises(UnmakeableError, match="inner contains itself"):
        Maker({"components": {"schemas": {"Endless": endless}}}).value(reference)
