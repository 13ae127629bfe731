import ast
import re
from collections.abc import Iterator
from http import HTTPStatus
from typing import Annotated, Any

import httpx2
import pytest
from fastapi import Depends, FastAPI
from fastapi.security import APIKeyHeader, HTTPBearer, OAuth2AuthorizationCodeBearer
from openapi_spec_validator import OpenAPIV31SpecValidator
from pydantic import BaseModel, Field

from app.accounts.dependencies import oauth2_scheme
from app.core.config.settings import Settings
from app.core.db.session import Database
from app.core.http.openapi import customize_openapi
from app.core.http.problems import STATUS_CODES
from app.core.project import ROOT, Project, read_project
from tests.support.applications import create_app
from tests.support.clients import open_client
from tests.support.databases import PRODUCTION, make_settings, unreachable_url


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
async def test_docs_load_no_files_from_other_sites(client: httpx2.AsyncClient, path: str) -> None:
    page = (await client.get(path)).text

    links = re.findall(r'(?:src|href)="([^"]+)"', page)
    assets = [link for link in links if not link.startswith("data:")]
    assert assets
    for asset in assets:
        assert asset.startswith("/"), asset
        assert (await client.get(asset)).status_code == 200
    assert "https://" not in re.sub(r"<!--.*?-->", "", page)


async def test_production_has_no_docs(migrated_url: str, database: Database) -> None:
    settings = make_settings(
        migrated_url,
        **PRODUCTION,
    )
    async with open_client(create_app(settings, database)) as client:
        answers = [
            await client.get(path) for path in ("/docs", "/redoc", "/openapi.json", "/docs/assets/swagger-ui.css")
        ]

    assert [answer.status_code for answer in answers] == [404] * 4


async def test_every_operation_has_an_id_and_a_documented_answer(settings: Settings) -> None:
    schema = create_app(settings).openapi()

    operations = [operation for path in schema["paths"].values() for operation in path.values()]
    ids = [operation["operationId"] for operation in operations]
    assert [name for name in ids if ids.count(name) > 1] == [], "give each route's function a different name"
    assert [name for name in ids if not re.fullmatch("[a-z][a-z0-9_]*", name)] == []
    for operation in operations:
        for status, response in operation["responses"].items():
            is_problem = status >= "400" and not (status == "400" and "token" in operation["operationId"])
            media_types = list(response.get("content", {}))
            documented = f"{operation['operationId']}, {status}: document it with problem_responses({status})"
            assert media_types == (["application/problem+json"] if is_problem else media_types), documented
            assert "HTTPValidationError" not in str(response)


def test_openapi_document_and_its_defaults_are_valid(settings: Settings) -> None:
    assert list(OpenAPIV31SpecValidator(create_app(settings).openapi()).iter_errors()) == []


def test_a_default_that_breaks_its_own_schema_is_found() -> None:
    """Proves that test_openapi_document_and_its_defaults_are_valid can fail."""
    app = FastAPI()

    class Named(BaseModel):
        name: Annotated[str, Field(min_length=1)] = ""

    @app.post("/named")
    def name(body: Named) -> None: ...

    [error] = OpenAPIV31SpecValidator(app.openapi()).iter_errors()
    assert "'' should be non-empty" in error.message


def test_a_body_or_a_query_that_cannot_be_parsed_is_documented(settings: Settings) -> None:
    paths = create_app(settings).openapi()["paths"]

    for path, operations in paths.items():
        if not path.startswith(settings.api_prefix):
            continue
        for method, operation in operations.items():
            has_query = any(parameter["in"] == "query" for parameter in operation.get("parameters", []))
            if has_query or "requestBody" in operation:
                assert "400" in operation["responses"], f"{method} {path}"


async def test_token_url_in_openapi_document_follows_api_prefix(migrated_url: str) -> None:
    schema = create_app(make_settings(migrated_url, api_prefix="/v2")).openapi()

    scheme = schema["components"]["securitySchemes"]["OAuth2PasswordBearer"]
    assert scheme["flows"]["password"]["tokenUrl"] == "/v2/auth/token"
    assert scheme["flows"]["password"]["refreshUrl"] == "/v2/auth/token"
    assert "/v2/auth/token" in schema["paths"]


def test_other_security_schemes_stay_as_they_are() -> None:
    others: tuple[Any, ...] = (
        APIKeyHeader(name="X-API-Key"),
        HTTPBearer(),
        OAuth2AuthorizationCodeBearer("https://id.example.com/authorize", tokenUrl="https://id.example.com/token"),
    )
    app = FastAPI()
    for number, scheme in enumerate((oauth2_scheme, *others)):
        app.add_api_route(f"/{number}", lambda: None, dependencies=[Depends(scheme)])
    generated = app.openapi()["components"]["securitySchemes"]
    app.openapi_schema = None

    customize_openapi(app, "/v2")

    customized = app.openapi()["components"]["securitySchemes"]
    assert customized["OAuth2PasswordBearer"]["flows"]["password"]["tokenUrl"] == "/v2/auth/token"
    for other in others:
        assert customized[other.scheme_name] == generated[other.scheme_name]


async def test_title_of_project_is_escaped_in_docs(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    nasty = Project(name="x", version="1", title="</title><script>alert(1)</script>", description="")
    monkeypatch.setattr("app.application.read_project", lambda: nasty)

    async with open_client(create_app(settings)) as client:
        page = (await client.get("/docs")).text

    assert "<script>alert" not in page


def test_project_has_title() -> None:
    assert read_project().title


def test_limits_of_every_route_of_accounts_are_documented() -> None:
    page = (ROOT / "docs" / "throttling.md").read_text()
    documented = {
        (method.lower(), path)
        for methods, path in re.findall(r"`([A-Z, ]+) (/[^`]*)`", page.partition("\n## Limits of each route\n")[2])
        for method in methods.split(", ")
    }
    paths = create_app(make_settings(unreachable_url())).openapi()["paths"]

    routes = {
        (method, re.sub("{[^}]*}", "{id}", path.removeprefix("/api/v1")))
        for path, methods in paths.items()
        for method in methods
        if re.match("/api/v1/(auth|users|audit-events)(/|$)", path)
    }
    assert routes - documented == set(), "document the limits of these routes in docs/throttling.md"
    assert documented - routes == set(), "docs/throttling.md lists routes that do not exist"


def test_every_error_code_is_documented() -> None:
    page = (ROOT / "docs" / "errors.md").read_text()
    rows = re.findall(r"(?m)^\| `([a-z-]+)` \| (\d{3}) \| (nginx:)?", page)
    documented = {code for code, *_ in rows}
    modules = [ast.parse(path.read_text()) for path in (ROOT / "app").rglob("*.py")]
    codes = {code for module in modules for code in find_error_codes(module)}

    assert {"busy", "not-found"} <= codes
    assert codes - documented == set(), "document these codes in docs/errors.md"
    # A code may be a constant that is passed on; an error without an explicit code has the code of its status.
    constants = {node.value for module in modules for node in ast.walk(module) if isinstance(node, ast.Constant)}
    of_statuses = {code for code, status, _ in rows if code in {STATUS_CODES.get(int(status)), phrase(int(status))}}
    of_nginx = {code for code, _, nginx in rows if nginx}
    assert documented - constants - of_statuses - of_nginx == set(), "docs/errors.md lists codes that do not exist"


def phrase(status: int) -> str:
    return HTTPStatus(status).phrase.lower().replace(" ", "-")


def find_error_codes(module: ast.Module) -> Iterator[str]:
    """Find the constants in `code = "…"` of a class and in `code="…"` of a call."""
    for node in ast.walk(module):
        values: list[ast.expr | None] = []
        match node:
            case ast.ClassDef():
                values = [value for statement in node.body for value in find_class_codes(statement)]
            case ast.Call(func=ast.Name(id="OAuthError")):
                pass  # Answers in the format of OAuth2 have no code.
            case ast.Call():
                values = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
        for value in values:
            for branch in (value.body, value.orelse) if isinstance(value, ast.IfExp) else (value,):
                if isinstance(branch, ast.Constant) and isinstance(branch.value, str) and branch.value:
                    yield branch.value


def find_class_codes(statement: ast.stmt) -> Iterator[ast.expr | None]:
    match statement:
        case ast.Assign(targets=[ast.Name(id="code")], value=value):
            yield value
        case ast.AnnAssign(target=ast.Name(id="code"), value=value):
            yield value


def test_error_codes_are_found_in_classes_and_in_calls() -> None:
    source = """
class BusyError(AppError):
    code = "a"
    other = "x"

class OtherError(AppError):
    code: str = "b"

class Fields:
    code: str = ""

raise AppError("Detail.", code="c" if status else "d", headers="x")
raise AppError("Detail.", code=code)
raise OAuthError("invalid_grant", "Detail.", code="x")
"""
    assert set(find_error_codes(ast.parse(source))) == {"a", "b", "c", "d"}


MENTION = re.compile(r"\]\((?!https?:|#)([^)#]+)(?:#([^)]+))?\)|(?<![\w/])(docs/[a-z-]+\.md)")


def test_links_between_documents_have_existing_targets() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    broken = []
    for page in pages:
        for link in MENTION.finditer(page.read_text()):
            target = ROOT / link[3] if link[3] else page.parent / link[1]
            is_there = target.is_file() and (link[2] is None or link[2] in list_anchors(target.read_text()))
            broken += [] if is_there else [f"{page.name}: {link[0]}"]

    assert len(pages) > 10
    assert broken == []


def list_anchors(markdown: str) -> list[str]:
    """Return the anchors of the headings as GitHub and GitLab make them."""
    headings = re.findall(r"(?m)^#+ (.+)$", re.sub(r"(?ms)^```.*?^```", "", markdown))
    return [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]


def test_readme_lists_every_page() -> None:
    readme = (ROOT / "README.md").read_text()

    assert [page.name for page in (ROOT / "docs").glob("*.md") if f"](docs/{page.name})" not in readme] == []


def test_no_body_of_a_partial_update_has_a_default(settings: Settings) -> None:
    """Clients generated from the document would send defaults, and so change fields that the user did not change."""
    schema = create_app(settings).openapi()

    bodies = [
        schema["components"]["schemas"][body["schema"]["$ref"].rpartition("/")[2]]
        for path in schema["paths"].values()
        if "patch" in path
        for body in path["patch"].get("requestBody", {}).get("content", {}).values()
    ]
    assert bodies
    defaults = {
        (body["title"], name) for body in bodies for name, field in body["properties"].items() if "default" in field
    }
    assert defaults == set(), "derive these bodies from PatchModel"
