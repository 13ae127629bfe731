from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

ASSETS = "/docs/assets"


def customize_openapi(app: FastAPI, api_prefix: str) -> None:
    """Complete the OpenAPI document: token URLs, 400 responses, and the media type of error responses."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = generate()
            _complete_token_urls(schema, api_prefix)
            _document_bad_requests(schema)
            _name_problem_type(schema)
        return generate()

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way


def _complete_token_urls(schema: dict[str, Any], api_prefix: str) -> None:
    """Prepend the API prefix to relative token URLs; absolute ones belong to other authorization servers."""
    schemes = schema.get("components", {}).get("securitySchemes", {}).values()
    for flow in (flow for scheme in schemes for flow in scheme.get("flows", {}).values()):
        for name in ("tokenUrl", "refreshUrl"):
            if name in flow and not flow[name].startswith(("/", "http://", "https://")):
                flow[name] = f"{api_prefix}/{flow[name]}"


def _document_bad_requests(schema: dict[str, Any]) -> None:
    """Document a 400 response for operations with a body or a query."""
    problem = {"schema": {"$ref": "#/components/schemas/Problem"}}
    for operation in (operation for path in schema["paths"].values() for operation in path.values()):
        has_query = any(parameter["in"] == "query" for parameter in operation.get("parameters", ()))
        # A documented 413 marks an API route of a feature, and shows that the document contains the schema Problem.
        if "413" in operation["responses"] and (has_query or "requestBody" in operation):
            described = {"description": "Bad Request", "content": {"application/json": problem}}
            operation["responses"].setdefault("400", described)


def _name_problem_type(schema: dict[str, Any]) -> None:
    for path in schema["paths"].values():
        for operation in path.values():
            for response in operation["responses"].values():
                content = response.get("content", {})
                if content.get("application/json", {}).get("schema", {}).get("$ref", "").endswith("/Problem"):
                    content["application/problem+json"] = content.pop("application/json")


def add_docs(app: FastAPI) -> None:
    """Serve Swagger UI and ReDoc with assets from a package instead of a CDN."""
    assets = Path(str(files("fastapi_offline") / "static"))
    app.mount(ASSETS, StaticFiles(directory=assets), name="docs_assets")

    @app.get("/docs", include_in_schema=False)
    async def read_docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title=escape(app.title),
            swagger_js_url=f"{ASSETS}/swagger-ui-bundle.js",
            swagger_css_url=f"{ASSETS}/swagger-ui.css",
            swagger_favicon_url=f"{ASSETS}/favicon.png",
        )

    @app.get("/redoc", include_in_schema=False)
    async def read_redoc() -> HTMLResponse:
        return get_redoc_html(
            openapi_url="/openapi.json",
            title=escape(app.title),
            redoc_js_url=f"{ASSETS}/redoc.standalone.js",
            redoc_favicon_url=f"{ASSETS}/favicon.png",
            with_google_fonts=False,
        )
