"""Pages of todos. Delete this file together with app/todos."""

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
from fastapi import FastAPI
from sqlalchemy import delete
from sqlalchemy.ext.asyncio import AsyncConnection

from app.accounts.models import UserSession
from tests.support.browsing import Browser, open_browser


@pytest.fixture
async def browser(app: FastAPI) -> AsyncIterator[Browser]:
    async with open_browser(app) as browser:
        await browser.enter("ada@example.com")
        await browser.open("/todos")
        yield browser


async def add(browser: Browser, title: str) -> str:
    await browser.send("/todos", title=title)
    assert browser.path == "/todos", browser.text
    return browser.list_ids('action="/todos/{}')[0]


async def test_user_adds_completes_edits_and_deletes_a_todo(browser: Browser) -> None:
    assert "You have no todos." in browser.text

    todo_id = await add(browser, "Buy <milk>")
    assert "Buy &lt;milk&gt;" in browser.text
    assert "Todo added." in browser.text

    await browser.send(f"/todos/{todo_id}")
    assert 'class="done">Buy' in browser.text
    await browser.send(f"/todos/{todo_id}")
    assert 'class="done">Buy' not in browser.text

    await browser.open(f"/todos/{todo_id}")
    assert browser.find_form(f"/todos/{todo_id}")["title"] == "Buy <milk>"
    await browser.send(f"/todos/{todo_id}", title="Buy bread", description="Two\r\nof them")
    assert "Buy bread" in browser.text
    await browser.open(f"/todos/{todo_id}")
    assert browser.find_form(f"/todos/{todo_id}")["description"] == "Two\nof them"

    await browser.open("/todos")
    await browser.send(f"/todos/{todo_id}/delete")
    assert "You have no todos." in browser.text


async def test_invisible_title_is_refused_at_its_field(browser: Browser) -> None:
    await browser.send("/todos", title="\N{ZERO WIDTH SPACE}")

    assert browser.page.status_code == 422
    assert 'id="title-note">must not be empty' in browser.text


async def test_edit_keeps_a_todo_completed(browser: Browser) -> None:
    todo_id = await add(browser, "Buy milk")
    await browser.send(f"/todos/{todo_id}")
    await browser.open(f"/todos/{todo_id}")

    await browser.send(f"/todos/{todo_id}", description="Two")

    assert 'class="done">Buy milk' in browser.text


async def test_long_list_is_paginated(browser: Browser) -> None:
    for number in range(21):
        await add(browser, f"Number {number}.")
    assert "Number 0." not in browser.text

    cursor = browser.text.partition("/todos?cursor=")[2].partition('"')[0]
    await browser.open(f"/todos?cursor={cursor}")

    assert "Number 0." in browser.text
    assert "Number 1." not in browser.text


async def test_error_is_shown_at_its_field(browser: Browser) -> None:
    await browser.send("/todos", title="  ")

    assert browser.page.status_code == 422
    assert 'id="title-note"' in browser.text
    assert 'aria-invalid="true"' in browser.text


async def test_refused_edit_changes_nothing_and_keeps_the_input(browser: Browser) -> None:
    todo_id = await add(browser, "Buy milk")
    await browser.open(f"/todos/{todo_id}")

    await browser.send(f"/todos/{todo_id}", title="x" * 201, description="Typed for an hour")

    assert browser.page.status_code == 422
    assert browser.find_form(f"/todos/{todo_id}")["description"] == "Typed for an hour"
    await browser.open("/todos")
    assert "Buy milk" in browser.text


async def test_unknown_field_is_refused(browser: Browser) -> None:
    await browser.send("/todos", title="Buy milk", owner_id=str(uuid4()))

    assert browser.page.status_code == 422


@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("POST", ""), ("POST", "/delete")])
async def test_todo_of_another_user_is_not_found(app: FastAPI, browser: Browser, method: str, path: str) -> None:
    todo_id = await add(browser, "Buy milk")

    async with open_browser(app) as other:
        await other.enter("eve@example.com")
        fields = other.find_form("/sign-out") | {"title": "Mine"}
        answer = await other.client.request(method, f"/todos/{todo_id}{path}", data=fields)

    assert answer.status_code == 404
    assert answer.headers["content-type"].startswith("text/html")
    await browser.open("/todos")
    assert "Buy milk" in browser.text


async def test_sign_in_leads_back_to_the_requested_todo(app: FastAPI, browser: Browser) -> None:
    todo_id = await add(browser, "Buy milk")

    async with open_browser(app) as stranger:
        await stranger.open(f"/todos/{todo_id}")
        assert stranger.path == "/sign-in"
        assert "Sign in to continue." in stranger.text
        await stranger.send("/sign-in", email="ada@example.com", password="correct horse battery staple")

    assert stranger.path == f"/todos/{todo_id}"


async def test_form_of_an_ended_session_leads_to_the_sign_in(browser: Browser, connection: AsyncConnection) -> None:
    await connection.execute(delete(UserSession))

    await browser.send("/todos", title="Too late")

    assert browser.path == "/sign-in"
    await browser.sign_in("ada@example.com")
    await browser.open("/todos")
    assert "You have no todos." in browser.text


@pytest.mark.parametrize("path", ["", "/{}", "/{}/delete"])
async def test_form_without_a_token_changes_nothing(browser: Browser, path: str) -> None:
    todo_id = await add(browser, "Buy milk")

    answer = await browser.client.post(f"/todos{path.format(todo_id)}", data={"title": "Changed"})

    assert answer.status_code == 403
    await browser.open("/todos")
    assert "Buy milk" in browser.text
    assert "Changed" not in browser.text
