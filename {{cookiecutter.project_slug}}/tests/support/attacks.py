"""Attacks on the routes of a service that is known by its OpenAPI document alone."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import httpx2

from app.accounts.scopes import Scope
from tests.support.accounts import Account
from tests.support.bodies import Schema, UnmakeableError, fill_path, list_fields, make_request

Operation = tuple[str, str]
# The ids of the items that path parameters and body fields refer to, by the name of the parameter or field.
Ids = Mapping[str, object]

TOKEN_SCHEME = "OAuth2PasswordBearer"
# The status of a response to the owner, if the state of the item forbids the request.
CONFLICT = 409
BY_HAND = "Give a valid body in BODIES of tests/test_attacks.py, or name the attacked route in CHECKED_ELSEWHERE there."


@dataclass(frozen=True)
class Target:
    """A service under attack."""

    document: Schema
    client: httpx2.AsyncClient
    # Creates the items that only administrators may create.
    admin: Account
    # Bodies, or fields of them, that cannot be made from the document.
    bodies: Mapping[Operation, object] = field(default_factory=dict)
    # The collections of fields that are not named after what they refer to.
    references: Mapping[str, str] = field(default_factory=dict)


def list_operations(document: Schema) -> list[Operation]:
    return sorted((method, path) for path, methods in document["paths"].items() for method in methods)


def list_owned(document: Schema) -> list[Operation]:
    """List the operations on users' items that require authentication, except operations for administrators."""
    return [
        (method, path)
        for method, path in list_operations(document)
        if "security" in document["paths"][path][method]
        and not _is_for_administrators(document, method, path)
        and any(
            name == "id" or name.endswith("_id") or collection in document["paths"]
            for name, collection in _list_parameters(path)
        )
    ]


async def call(target: Target, method: str, path: str, ids: Ids, headers: Mapping[str, str]) -> httpx2.Response:
    """Send a small valid request; `ids` fill the parameters of the path, and fields of the body with the same names."""
    try:
        request = make_request(target.document, method, path, ids, target.bodies.get((method, path)))
    except UnmakeableError as error:
        raise AssertionError(f"{_name(method, path)} cannot be called: {error}. {BY_HAND}") from error
    request["headers"] |= headers
    return await target.client.request(method, fill_path(path, ids), **request)


async def check_guard(target: Target, method: str, path: str, powerless: Mapping[str, str]) -> None:
    """Check that a route refuses a caller without a token, and a caller whose token has none of the route's scopes.

    Routes with another security scheme than our tokens may refuse both callers with 401 or 403.
    """
    operation = target.document["paths"][path][method]
    ids = {name: uuid4() for name, _ in _list_parameters(path)}
    answers = [await call(target, method, path, ids, headers) for headers in ({}, powerless)]
    statuses = [answer.status_code for answer in answers]
    if not any(TOKEN_SCHEME in need for need in operation["security"]):
        assert {*statuses} <= {401, 403}, f"{_name(method, path)} answers {statuses} to callers without credentials"
        return
    assert statuses == [401, 403], f"{_name(method, path)} answers {statuses} without a token, and without its scope"
    assert answers[0].headers["www-authenticate"].startswith("Bearer")
    assert {"401", "403"} <= operation["responses"].keys(), f"{_name(method, path)}: add problem_responses(401, 403)"


async def check_owner(target: Target, method: str, path: str, owner: Account, attackers: Sequence[Account]) -> None:
    """Check that an item is out of reach for everyone but its owner, and stays as it is.

    In the end the owner sends the same request and must succeed; otherwise the refusals could have other reasons.
    """
    ids = await make_items(target, path, owner)
    await _make_part(target, path, ids, owner)
    known = await _make_references(target, method, path, ids, owner)
    attempts = [attempt for attacker in attackers for attempt in await _plan(target, method, path, known, attacker)]
    before = await _read_as_owner(target, path, ids, owner)
    for attacker, chosen in attempts:
        answer = await call(target, method, path, chosen, attacker.headers)
        _check_refusal(method, path, chosen, answer)
    after = await _read_as_owner(target, path, ids, owner)
    assert after == before, f"{_name(method, path)} was refused, and changed the item of someone else"
    answer = await call(target, method, path, known, owner.headers)
    assert answer.is_success or answer.status_code == CONFLICT, (
        f"{_name(method, path)} answers its owner {answer.status_code}, so that the refusal of others shows nothing: "
        f"{answer.text}. {BY_HAND}"
    )


async def make_items(target: Target, path: str, owner: Account, ids: Ids | None = None) -> Ids:
    """Create an item for each parameter of a path, each inside the previous item, and return the ids."""
    made: dict[str, object] = {"user_id": owner.id, **(ids or {})}
    for name, collection in _list_parameters(path):
        if name not in made:
            made[name] = await _make_item(target, collection, name, made, owner)
    return made


async def _make_item(target: Target, collection: str, name: str, ids: Ids, owner: Account) -> object:
    methods = target.document["paths"].get(collection, {})
    item: Any = None
    if "post" in methods:
        maker = target.admin if _is_for_administrators(target.document, "post", collection) else owner
        known = await _make_references(target, "post", collection, ids, maker)
        answer = await call(target, "post", collection, known, maker.headers)
        _check_success("post", collection, answer)
        item = _read_json(answer)
    if "get" in methods and not isinstance(item, dict):
        answer = await call(target, "get", collection, ids, owner.headers)
        _check_success("get", collection, answer)
        listed = _read_json(answer)
        items = listed.get("items") if isinstance(listed, dict) else listed
        item = items[0] if items else None
    found = item.get(name, item.get("id")) if isinstance(item, dict) else None
    assert found is not None, (
        f"{collection} makes and lists nothing that has an id, for the {name} of a path. {BY_HAND}"
    )
    return found


async def _make_references(target: Target, method: str, path: str, ids: Ids, maker: Account) -> Ids:
    """Create an item for each field of the body that refers to another collection, such as `category_id`.

    Return `ids` with the ids of the new items added. An item whose id is in `ids` is not created again.
    """
    try:
        request = make_request(target.document, method, path, ids, target.bodies.get((method, path)))
    except UnmakeableError:
        return ids
    given = target.bodies.get((method, path))
    known = dict(ids)
    for name in sorted({*list_fields(request.get("json", request.get("data")))} - {*list_fields(given)}):
        single = name.removesuffix("s")
        collection = _find_collection(target, single)
        if single not in known and collection not in (None, path):
            known[single] = (await make_items(target, f"{collection}/" + "{" + single + "}", maker, known))[single]
    return known


def _find_collection(target: Target, name: str) -> str | None:
    """Return the path of the collection that a field such as `category_id` refers to, or None."""
    if name in target.references:
        return target.references[name]
    thing = name.removesuffix("_id").replace("_", "-")
    plurals = {f"{thing}s", f"{thing}es", f"{thing.removesuffix('y')}ies"} if name.endswith("_id") else set()
    paths = [path for path, methods in target.document["paths"].items() if "post" in methods]
    return next((path for path in paths if path.rpartition("/")[2].replace("_", "-") in plurals), None)


async def _make_part(target: Target, path: str, ids: Ids, owner: Account) -> None:
    """Create the resource at a path without a final id, such as `/expenses/{expense_id}/receipt`, by PUT and POST."""
    methods = target.document["paths"][path].keys()
    if path.endswith("}") or not methods & {"get", "delete"}:
        return
    for method in sorted(methods & {"put", "post"}):
        known = await _make_references(target, method, path, ids, owner)
        _check_success(method, path, await call(target, method, path, known, owner.headers))


async def _plan(target: Target, method: str, path: str, ids: Ids, attacker: Account) -> list[tuple[Account, Ids]]:
    """Return an attacker's attempts on the owner's items, also by paths that begin with the attacker's own items.

    If the body refers to items, each attempt is made twice: with items of the attacker, and then with items of the
    owner. The first one is needed because a refusal of the owner's item in the body would hide that the route does not
    check the owner of the items in its path.
    """
    names = [name for name, _ in _list_parameters(path)]
    own = await _make_references(target, method, path, await make_items(target, path, attacker), attacker)
    targets = [
        {name: (own if place < parents else ids)[name] for place, name in enumerate(names)}
        for parents in range(len(names))
    ]
    fields = [own, ids] if ids.keys() - {"user_id", *names} else [own]
    return [(attacker, {**each, **chosen}) for chosen in targets for each in fields]


async def _read_as_owner(target: Target, path: str, ids: Ids, owner: Account) -> dict[str, bytes]:
    """As the owner, read the path and its parent paths that have a GET route; return the bodies. No read may fail."""
    shown = {}
    parts = path.split("/")
    for part in ("/".join(parts[:count]) for count in range(2, len(parts) + 1)):
        if "get" in target.document["paths"].get(part, {}) and not _is_for_administrators(target.document, "get", part):
            answer = await call(target, "get", part, ids, owner.headers)
            _check_success("get", part, answer)
            shown[part] = answer.content
    return shown


def _check_refusal(method: str, path: str, ids: Ids, answer: httpx2.Response) -> None:
    # Only 404 hides whether an item exists. A path that ends with a collection may also be refused with 403.
    allowed = {404} if path.endswith("}") else {403, 404}
    assert answer.status_code in allowed, (
        f"{_name(method, path)} answers {answer.status_code} and not {allowed} where the item is someone else's "
        f"({dict(ids)}): {answer.text}. Compare the owner in the query, or name the route in CHECKED_ELSEWHERE of "
        "tests/test_attacks.py."
    )
    detail = (_read_json(answer) or {}).get("detail") or ""
    assert not any(isinstance(each, str) and each in detail for each in ids.values()), f"{detail} names an id"


def _check_success(method: str, path: str, answer: httpx2.Response) -> None:
    assert answer.is_success, (
        f"{_name(method, path)} answers its owner {answer.status_code} before the attack: {answer.text}. {BY_HAND}"
    )


def _read_json(answer: httpx2.Response) -> Any:  # noqa: ANN401  # whatever the service answers
    return answer.json() if answer.content and "json" in answer.headers.get("content-type", "") else None


def _list_parameters(path: str) -> list[tuple[str, str]]:
    """Return each parameter of a path with the path of its collection, the outermost first."""
    return [(match[1], path[: match.start() - 1]) for match in re.finditer(r"\{(\w+)\}", path)]


def _is_for_administrators(document: Schema, method: str, path: str) -> bool:
    needs = document["paths"][path][method].get("security", [])
    return any(Scope.ADMIN in scopes for need in needs for scopes in need.values())


def _name(method: str, path: str) -> str:
    return f"{method.upper()} {path}"
