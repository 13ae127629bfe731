"""A sample feature, invitations, uses every extension point of features."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from typing import NamedTuple

import httpx2
import pytest
import typer
from pydantic import JsonValue
from sqlalchemy import Column, MetaData, String, Table, delete, insert, select, update
from typer.testing import CliRunner

from app.accounts import one_time_tokens
from app.accounts.dependencies import CurrentUser
from app.accounts.emails import LIFETIMES, Purpose
from app.core.commands import add_commands, load_settings, open_context, run
from app.core.config.base import FeatureSettings
from app.core.config.settings import Settings
from app.core.context import Context
from app.core.db.query import Command, Query
from app.core.db.session import Database, Session, open_database
from app.core.dependencies import SessionDep, SettingsDep
from app.core.email.message import EmailMessage as Message
from app.core.email.message import QueuedEmail
from app.core.feature import Feature, settings_of
from app.core.http.routing import FeatureRouter
from app.core.http.schemas import EmailAddress, RequestModel, SingleLine
from app.core.upstream.http_client import LazyHttpClient
from app.features import FEATURES
from app.outbox.service import enqueue
from app.startup import reset
from tests.support.accounts import create_account
from tests.support.applications import create_app
from tests.support.clients import open_client
from tests.support.databases import SECRET_KEY, execute_async, make_settings
from tests.support.mail import wait_for

INVITATION = "invitations: accept"
PATH = "/api/v1/tested-invitations"
PERSON = "grace@example.com"
SITE = {"Origin": "https://app.example.com"}
TASK = "confirm members"
NEW_MEMBER = "INSERT INTO tested_members VALUES ('grace@example.com', 'editor', 'new')"

tested_members = Table(
    "tested_members",
    MetaData(),
    *(Column(name, String(254), nullable=False) for name in ("address", "role", "state")),
)


class MemberRecord(NamedTuple):
    address: str
    role: str


ADD_MEMBER = Command(insert(tested_members))
NEW_MEMBERS = Query(select(tested_members.c.address).where(tested_members.c.state == "new"))
CONFIRM_MEMBERS = Command(update(tested_members).where(tested_members.c.state == "new").values(state="confirmed"))
LIST_MEMBERS = Query(
    select(tested_members.c.address, tested_members.c.role).order_by(tested_members.c.address), MemberRecord
)
PURGE_MEMBERS = Command(delete(tested_members).where(tested_members.c.state == "left"))


class InvitationSettings(FeatureSettings):
    invitation_lifetime_seconds: int = 3600


class InvitationCreate(RequestModel):
    email: EmailAddress
    role: SingleLine


class InvitationAccept(RequestModel):
    token: str


router = FeatureRouter(prefix="/tested-invitations", tags=["invitations"])


@router.post("", status_code=202)
async def invite_in_test(data: InvitationCreate, _user: CurrentUser, session: SessionDep) -> None:
    await enqueue(session, INVITATION, data.email, payload={"role": data.role})


@router.post("/accept")
async def accept_in_test(data: InvitationAccept, session: SessionDep) -> dict[str, JsonValue]:
    found = await one_time_tokens.use_token(session, data.token, INVITATION)
    member = {"address": found.address, "role": found.payload["role"]}
    await session.run(ADD_MEMBER, **member, state="new")
    return member


@router.get("/lifetime")
async def read_lifetime_in_test(settings: SettingsDep) -> int:
    return settings.of(InvitationSettings).invitation_lifetime_seconds


async def render_invitation(session: Session, settings: Settings, email: QueuedEmail) -> Message:
    lifetime = timedelta(seconds=settings.of(InvitationSettings).invitation_lifetime_seconds)
    token = await one_time_tokens.create_token(
        session, INVITATION, None, email.address, lifetime=lifetime, payload=email.payload
    )
    return Message(to=email.address, subject=f"Become our {email.payload['role']}", text=token, html=f"<p>{token}</p>")


@asynccontextmanager
async def run_confirmations(
    _settings: Settings, database: Database, _http: LazyHttpClient
) -> AsyncIterator[Mapping[str, object]]:
    task = asyncio.create_task(confirm_members(database), name=TASK)
    try:
        yield {"confirmations": task}
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def confirm_members(database: Database) -> None:
    while True:
        async with database.read() as session:
            is_due = await session.fetch_value(NEW_MEMBERS) is not None
        if is_due:
            async with database.write() as session:
                await session.run(CONFIRM_MEMBERS)
        await asyncio.sleep(0.01)


async def purge_members(session: Session, _settings: Settings) -> int:
    return await session.run(PURGE_MEMBERS)


async def load_sample_invitation(ctx: Context) -> None:
    await enqueue(ctx.session, INVITATION, PERSON, payload={"role": "sample"})


commands = typer.Typer(name="tested-invitations", no_args_is_help=True)


@commands.command("list")
def list_members(context: typer.Context) -> None:
    """List the users who accepted an invitation."""
    settings = load_settings(context)
    for address, role in run(fetch_members(settings)):
        typer.echo(f"{address} {role} {settings.of(InvitationSettings).invitation_lifetime_seconds}")


async def fetch_members(settings: Settings) -> list[MemberRecord]:
    async with open_context(settings) as ctx:
        return await ctx.session.fetch_all(LIST_MEMBERS)


invitations = Feature(
    api=router,
    settings=InvitationSettings,
    lifespan=run_confirmations,
    cors_allow_headers=("X-Campaign",),
    cors_expose_headers=("X-Seats-Left",),
    purge=purge_members,
    emails={INVITATION: render_invitation},
    commands="tests.test_features:commands",
    load_sample_data=load_sample_invitation,
)
ALL_FEATURES = (*FEATURES, invitations)


@pytest.fixture
async def members_url(live_url: str) -> str:
    await execute_async(
        live_url, "CREATE TABLE tested_members (address VARCHAR(254), role VARCHAR(50), state VARCHAR(10))"
    )
    return live_url


@pytest.fixture
def settings(members_url: str) -> Settings:
    # Without a mail server, e-mails become files. Tests expect them long before the sender polls after a minute.
    own = InvitationSettings(_env_file=None, invitation_lifetime_seconds=7200)
    settings = make_settings(members_url, cors_origins=SITE["Origin"], purge_interval_seconds=1, outbox_poll_seconds=60)
    return settings.join(own)


@pytest.fixture
async def client(settings: Settings) -> AsyncIterator[httpx2.AsyncClient]:
    async with open_client(create_app(settings, features=ALL_FEATURES)) as client:
        yield client


@pytest.fixture
async def database(settings: Settings) -> AsyncIterator[Database]:
    async with open_database(settings) as database:
        yield database


def list_messages(folder: Path) -> list[EmailMessage]:
    return [message_from_bytes(file.read_bytes(), policy=default) for file in folder.glob("*.eml")]


async def invite_person(client: httpx2.AsyncClient, folder: Path) -> str:
    """Send an invitation, and return the code in its message."""
    user = await create_account(client)
    invited = await client.post(PATH, json={"email": PERSON, "role": "editor"}, headers=user.headers)
    assert invited.status_code == 202, invited.text
    await wait_for(lambda: list_messages(folder))
    (message,) = list_messages(folder)
    assert (message["To"], message["Subject"]) == (PERSON, "Become our editor")
    body = message.get_body(("plain",))
    assert body is not None
    return str(body.get_content()).strip()


async def make_token(database: Database, purpose: str, lifetime: timedelta) -> str:
    async with database.write() as session:
        return await one_time_tokens.create_token(session, purpose, None, PERSON, lifetime=lifetime)


async def test_person_without_an_account_accepts_an_invitation_once(
    client: httpx2.AsyncClient, email_folder: Path
) -> None:
    token = await invite_person(client, email_folder)

    answers = await asyncio.gather(*(client.post(f"{PATH}/accept", json={"token": token}) for _ in range(3)))

    assert sorted(answer.status_code for answer in answers) == [200, 422, 422]
    assert [answer.json() for answer in answers if answer.status_code == 200] == [{"address": PERSON, "role": "editor"}]


async def test_code_works_for_no_other_purpose(
    client: httpx2.AsyncClient, email_folder: Path, database: Database
) -> None:
    invitation = await invite_person(client, email_folder)
    reset_code = await make_token(database, Purpose.RESET_PASSWORD, LIFETIMES[Purpose.RESET_PASSWORD])
    password = {"new_password": "another horse and another staple"}

    refused = [
        await client.post("/api/v1/auth/password/reset", json={"token": invitation, **password}),
        await client.post("/api/v1/auth/email/verify", json={"token": invitation}),
        await client.post(f"{PATH}/accept", json={"token": reset_code}),
    ]
    accepted = await client.post(f"{PATH}/accept", json={"token": invitation})

    assert [answer.status_code for answer in refused] == [422, 422, 422]
    assert accepted.status_code == 200, accepted.text


async def test_expired_code_without_a_user_does_not_work_and_is_purged(
    client: httpx2.AsyncClient, database: Database, members_url: str
) -> None:
    expired = await make_token(database, INVITATION, timedelta(seconds=-1))
    valid = await make_token(database, INVITATION, timedelta(hours=1))

    refused = await client.post(f"{PATH}/accept", json={"token": expired})

    async def is_purged() -> bool:
        return len(await execute_async(members_url, "SELECT 1 FROM one_time_tokens")) == 1

    await wait_for(is_purged)
    assert refused.status_code == 422
    async with database.read() as session:
        assert (await one_time_tokens.find_token(session, valid, INVITATION)).address == PERSON


async def test_background_task_works_on_the_database_and_ends_with_the_service(
    settings: Settings, members_url: str
) -> None:
    async def is_confirmed() -> bool:
        return await execute_async(members_url, "SELECT state FROM tested_members") == [("confirmed",)]

    app = create_app(settings, features=ALL_FEATURES)
    async with app.router.lifespan_context(app) as state:
        assert state is not None
        await execute_async(members_url, NEW_MEMBER)
        await wait_for(is_confirmed)
        task = state["confirmations"]
        is_running = not task.done()

    assert is_running
    assert task.cancelled()
    assert TASK not in {each.get_name() for each in asyncio.all_tasks()}


async def test_routes_read_the_settings_of_the_feature(client: httpx2.AsyncClient) -> None:
    assert (await client.get(f"{PATH}/lifetime")).json() == 7200


async def test_pages_of_other_sites_may_send_and_read_headers_of_feature(client: httpx2.AsyncClient) -> None:
    asked = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "x-campaign, if-match"}
    preflight = await client.options(f"{PATH}/lifetime", headers={**SITE, **asked})
    answer = await client.get(f"{PATH}/lifetime", headers=SITE)

    assert preflight.status_code == 200, preflight.text
    assert "X-Campaign" in preflight.headers["access-control-allow-headers"].split(", ")
    assert {"ETag", "X-Seats-Left"} <= set(answer.headers["access-control-expose-headers"].split(", "))


async def test_rows_of_the_feature_are_purged(client: httpx2.AsyncClient, members_url: str) -> None:
    await execute_async(
        members_url, "INSERT INTO tested_members VALUES ('a@example.com', '', 'left'), ('b@example.com', '', '')"
    )

    async def is_purged() -> bool:
        return await execute_async(members_url, "SELECT address FROM tested_members") == [("b@example.com",)]

    await wait_for(is_purged)


async def test_reset_loads_the_sample_data_of_the_feature(settings: Settings, members_url: str) -> None:
    await reset(settings, ALL_FEATURES)

    assert await execute_async(members_url, "SELECT kind, address FROM outgoing_emails") == [(INVITATION, PERSON)]


def make_cli(*features: Feature) -> typer.Typer:
    cli = typer.Typer(context_settings={"obj": settings_of(features)})
    add_commands(cli, features)
    return cli


async def test_command_of_the_feature_has_its_settings_and_the_database(members_url: str) -> None:
    await execute_async(members_url, NEW_MEMBER)
    environment = {"SECRET_KEY": SECRET_KEY, "DATABASE_URL": members_url, "INVITATION_LIFETIME_SECONDS": "60"}
    cli = make_cli(*ALL_FEATURES)

    listed = await asyncio.to_thread(CliRunner().invoke, cli, ["tested-invitations", "list"], env=environment)
    helped = await asyncio.to_thread(CliRunner().invoke, cli, ["--help"])

    assert (listed.exit_code, listed.stdout) == (0, f"{PERSON} editor 60\n"), listed.output
    assert all(group in helped.stdout for group in ("tested-invitations", "outbox", "users"))


same_group = typer.Typer(name="users")
same_command = typer.Typer()
same_command.command("list")(list_members)
same_command.command("list")(list_members)


@pytest.mark.parametrize(("name", "repeated"), [("same_group", "users"), ("same_command", "list")])
def test_repeated_name_of_command_is_refused_with_readable_message(name: str, repeated: str) -> None:
    with pytest.raises(SystemExit, match=f"have the same name: {repeated}\\. Rename one"):
        make_cli(*FEATURES, Feature(commands=f"tests.test_features:{name}"))


@pytest.mark.parametrize("key", ["identity_cache", "database"])
async def test_repeated_key_of_the_state_is_refused_at_start(settings: Settings, key: str) -> None:
    @asynccontextmanager
    async def open_nothing(
        _settings: Settings, _database: Database, _http: LazyHttpClient
    ) -> AsyncIterator[Mapping[str, object]]:
        yield {key: None}

    app = create_app(settings, features=(*FEATURES, Feature(lifespan=open_nothing)))
    with pytest.raises(ValueError, match=f"already has the keys {key}: rename them"):
        async with app.router.lifespan_context(app):
            pass
