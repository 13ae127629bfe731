import asyncio
import io
import re
from collections.abc import AsyncIterator, Callable
from urllib.parse import parse_qs, unquote, urlsplit
from uuid import UUID

import httpx2
import pytest
from prometheus_client import REGISTRY
from pydantic import SecretStr
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.accounts.events import AccountEvent
from app.accounts.models import SecondFactor
from app.accounts.second_factor import codes
from app.accounts.second_factor.service import reencrypt
from app.core.config.settings import Settings
from app.core.context import Context
from app.core.db.session import Database, Session
from app.core.project import read_project
from tests.support.accounts import PASSWORD, Account, create_account, request_token
from tests.support.applications import create_app
from tests.support.clients import open_client
from tests.support.clock import Clock
from tests.support.databases import SECRET_KEY, make_settings
from tests.support.mail import Mailbox
from tests.support.second_factor import PATH, PROOF, TYPED, enable, show_code

NEW_KEY = SecretStr("a new key with enough bytes 0123456")


async def sign_in(client: httpx2.AsyncClient, user: Account, **form: str) -> str:
    """Return the error code of the response, or an empty string if the sign-in succeeds."""
    response = await request_token(client, username=user.email, password=user.password, **form)
    return str(response.json().get("error", ""))


async def test_confirmed_second_factor_is_required_at_sign_in(
    client: httpx2.AsyncClient, user: Account, clock: Clock
) -> None:
    secret, _ = await enable(client, user)
    clock.now += 30

    assert await sign_in(client, user) == "mfa_required"
    assert await sign_in(client, user, otp="000000") == "invalid_grant"
    assert await sign_in(client, user, otp=show_code(secret, clock.now)) == ""


async def test_unconfirmed_second_factor_is_not_required_at_sign_in(client: httpx2.AsyncClient, user: Account) -> None:
    await client.post(PATH, json=PROOF, headers=user.headers)
    wrong = await client.post(f"{PATH}/confirm", json={"code": "000000"}, headers=user.headers)

    assert wrong.status_code == 422
    assert await sign_in(client, user) == ""


async def test_wrong_password_is_refused_before_code_is_checked(
    client: httpx2.AsyncClient, user: Account, clock: Clock
) -> None:
    secret, _ = await enable(client, user)
    clock.now += 30

    refused = await request_token(
        client, username=user.email, password="not the password", otp=show_code(secret, clock.now)
    )

    assert refused.json()["error_description"] == "Incorrect e-mail address or password."


@pytest.mark.parametrize(
    ("late", "error"), [(-60, "invalid_grant"), (-30, ""), (0, ""), (30, ""), (60, "invalid_grant")]
)
async def test_a_code_works_one_step_early_or_late(
    client: httpx2.AsyncClient, user: Account, clock: Clock, late: int, error: str
) -> None:
    secret, _ = await enable(client, user)
    clock.now += 300

    assert await sign_in(client, user, otp=show_code(secret, clock.now + late)) == error


async def test_used_code_and_earlier_codes_are_refused(client: httpx2.AsyncClient, user: Account, clock: Clock) -> None:
    secret, recovery_codes = await enable(client, user)
    # This code has already confirmed the second factor.
    assert await sign_in(client, user, otp=show_code(secret)) == "invalid_grant"
    clock.now += 30
    code, before = show_code(secret, clock.now), show_code(secret, clock.now - 30)

    answers = [await sign_in(client, user, otp=otp) for otp in (code, code, before)]
    recovered = [await sign_in(client, user, otp=recovery_codes[3]) for _ in range(2)]

    assert answers == ["", "invalid_grant", "invalid_grant"]
    assert recovered == ["", "invalid_grant"]


async def test_recovery_codes_are_unique_and_accepted_in_lower_case_or_with_spaces(
    client: httpx2.AsyncClient, user: Account, clock: Clock
) -> None:
    _, recovery_codes = await enable(client, user)

    assert len(set(recovery_codes)) == 10
    assert all(len(code.replace("-", "")) == 16 for code in recovery_codes)
    assert await sign_in(client, user, otp=recovery_codes[0].lower()) == ""
    assert await sign_in(client, user, otp=recovery_codes[1].replace("-", " ")) == ""


@pytest.mark.parametrize("otp", ["", " ", "١٢٣٤٥٦", "12345", "1234567", "x" * 10_000, "\0", "-", "ABCD-EFGH-IJKL-MNOP"])
async def test_invalid_code_is_refused(client: httpx2.AsyncClient, user: Account, clock: Clock, otp: str) -> None:
    await enable(client, user)

    assert await sign_in(client, user, otp=otp) in ("mfa_required", "invalid_grant")


@pytest.mark.parametrize("typed", TYPED)
async def test_code_typed_with_spaces_or_unusual_characters_is_accepted(
    client: httpx2.AsyncClient, user: Account, clock: Clock, typed: Callable[[str], str]
) -> None:
    begun = await client.post(PATH, json=PROOF, headers=user.headers)
    secret = begun.json()["secret"]
    code = {"code": typed(show_code(secret))}
    confirmed = await client.post(f"{PATH}/confirm", json=code, headers=user.headers)
    clock.now += 30

    assert confirmed.status_code == 200, confirmed.text
    assert await sign_in(client, user, otp=typed(show_code(secret, clock.now))) == ""
    recovery_codes = confirmed.json()["recovery_codes"]
    assert await sign_in(client, user, otp=typed(recovery_codes[0])) == ""
    assert await sign_in(client, user, otp=typed(recovery_codes[1].replace("-", "").lower())) == ""
    assert await sign_in(client, user, otp=recovery_codes[2].replace("-", "\N{EN DASH}")) == ""


@pytest.mark.parametrize("code", ["12345", "1234567", "12345x", "", " ", "x" * 101, "½23456"])
async def test_error_for_malformed_code_is_a_readable_sentence(
    client: httpx2.AsyncClient, user: Account, code: str
) -> None:
    await client.post(PATH, json=PROOF, headers=user.headers)

    refused = await client.post(f"{PATH}/confirm", json={"code": code}, headers=user.headers)

    (problem,) = refused.json()["errors"]
    assert refused.status_code == 422
    assert problem["location"] == ["body", "code"]
    assert "pattern" not in problem["message"]


@pytest.mark.parametrize("otp", ["", " ", "\u200b"])
async def test_blank_code_is_treated_as_missing(
    client: httpx2.AsyncClient, user: Account, clock: Clock, otp: str
) -> None:
    await enable(client, user)

    assert await sign_in(client, user, otp=otp) == "mfa_required"


async def test_codes_do_not_work_for_another_account(client: httpx2.AsyncClient, user: Account, clock: Clock) -> None:
    other = await create_account(client)
    await enable(client, user)
    secret, recovery_codes = await enable(client, other)
    clock.now += 30

    assert await sign_in(client, user, otp=recovery_codes[0]) == "invalid_grant"
    assert await sign_in(client, user, otp=show_code(secret, clock.now)) == "invalid_grant"


async def test_changing_second_factor_requires_password_and_code(
    client: httpx2.AsyncClient, user: Account, clock: Clock
) -> None:
    wrong = {"current_password": "not the password"}
    refused_to_begin = await client.post(PATH, json=wrong, headers=user.headers)
    _, recovery_codes = await enable(client, user)

    refused = await client.post(f"{PATH}/disable", json=wrong, headers=user.headers)
    without = await client.post(f"{PATH}/disable", json=PROOF, headers=user.headers)
    wrongly = await client.post(f"{PATH}/disable", json={**PROOF, "otp": "000000"}, headers=user.headers)
    again = await client.post(PATH, json={**PROOF, "otp": recovery_codes[0]}, headers=user.headers)
    asked = await sign_in(client, user)
    disabled = await client.post(f"{PATH}/disable", json={**PROOF, "otp": recovery_codes[1]}, headers=user.headers)

    refusals = (refused_to_begin, refused, without, wrongly)
    assert [each.status_code for each in refusals] == [422] * 4
    assert again.status_code == 409
    assert asked == "mfa_required"
    assert disabled.status_code == 204
    assert await sign_in(client, user) == ""


async def test_second_factor_cannot_be_confirmed_before_setup_or_twice(
    client: httpx2.AsyncClient, user: Account, clock: Clock
) -> None:
    unbegun = await client.post(f"{PATH}/confirm", json={"code": "123456"}, headers=user.headers)
    secret, _ = await enable(client, user)
    clock.now += 30

    again = await client.post(f"{PATH}/confirm", json={"code": show_code(secret, clock.now)}, headers=user.headers)

    assert (unbegun.status_code, again.status_code) == (409, 409)


@pytest.mark.parametrize("is_begun", [True, False])
async def test_second_factor_that_is_off_cannot_be_switched_off(
    client: httpx2.AsyncClient, user: Account, admin: Account, is_begun: bool
) -> None:
    if is_begun:
        await client.post(PATH, json=PROOF, headers=user.headers)

    refused = await client.post(f"{PATH}/disable", json=PROOF, headers=user.headers)

    query = {"user_id": user.id, "event": AccountEvent.SECOND_FACTOR_DISABLED}
    events = await client.get("/api/v1/audit-events", params=query, headers=admin.headers)
    assert refused.status_code == 409
    assert events.json()["items"] == []


async def test_concurrent_setups_leave_one_valid_secret(
    live_url: str, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    find_factor = codes.find_factor

    async def find_slowly(session: Session, user_id: UUID) -> codes.FactorRecord | None:
        factor = await find_factor(session, user_id)
        await asyncio.sleep(0.2)
        return factor

    async with open_client(create_app(make_settings(live_url, database_pool_size=5), clock=clock)) as client:
        user = await create_account(client)
        monkeypatch.setattr("app.accounts.second_factor.service.find_factor", find_slowly)
        begun = await asyncio.gather(*(client.post(PATH, json=PROOF, headers=user.headers) for _ in range(3)))
        secrets = [each.json()["secret"] for each in begun if each.status_code == 200]
        proofs = [{"code": show_code(secret)} for secret in secrets]
        confirmed = [await client.post(f"{PATH}/confirm", json=proof, headers=user.headers) for proof in proofs]

    assert {each.status_code for each in begun} <= {200, 409}
    assert [each.status_code for each in confirmed].count(200) == 1


@pytest.mark.parametrize("moment", ["begin", "confirm"])
async def test_concurrent_setup_does_not_undo_confirmation(
    live_url: str, monkeypatch: pytest.MonkeyPatch, clock: Clock, moment: str
) -> None:
    find_factor, use_totp = codes.find_factor, codes.use_totp
    others: list[asyncio.Task[httpx2.Response]] = []

    async def meet(path: str, body: dict[str, str]) -> None:
        others.append(asyncio.create_task(client.post(path, json=body, headers=user.headers)))
        await asyncio.wait(others, timeout=1)

    async def find_slowly(session: Session, user_id: UUID) -> codes.FactorRecord | None:
        factor = await find_factor(session, user_id)
        await meet(f"{PATH}/confirm", code)
        return factor

    async def use_slowly(ctx: Context, user_id: UUID, factor: codes.FactorRecord, code: str) -> bool:
        await meet(PATH, PROOF)
        return await use_totp(ctx, user_id, factor, code)

    async with open_client(create_app(make_settings(live_url, database_pool_size=5), clock=clock)) as client:
        user = await create_account(client)
        begun = await client.post(PATH, json=PROOF, headers=user.headers)
        code = {"code": show_code(begun.json()["secret"])}
        with monkeypatch.context() as patch:
            if moment == "begin":
                patch.setattr("app.accounts.second_factor.service.find_factor", find_slowly)
                again = await client.post(PATH, json=PROOF, headers=user.headers)
                (confirmed,) = await asyncio.gather(*others)
            else:
                patch.setattr("app.accounts.second_factor.service.use_totp", use_slowly)
                confirmed = await client.post(f"{PATH}/confirm", json=code, headers=user.headers)
                (again,) = await asyncio.gather(*others)
        asked = await sign_in(client, user)

    # Either request may come first. After the confirmation, the new setup is refused: an app exists (409), or a code is
    # missing (422). After the new setup, the confirmation is refused: the code belongs to the old secret (422), or the
    # request finds neither the old secret nor the new one (409).
    assert (again.status_code, confirmed.status_code) in {(409, 200), (422, 200), (200, 422), (200, 409)}
    assert asked == ("mfa_required" if confirmed.status_code == 200 else "")


async def test_uri_has_the_format_of_authenticator_apps(client: httpx2.AsyncClient, user: Account) -> None:
    begun = (await client.post(PATH, json=PROOF, headers=user.headers)).json()

    uri = urlsplit(begun["uri"])
    query = parse_qs(uri.query)
    assert (uri.scheme, uri.netloc) == ("otpauth", "totp")
    assert unquote(uri.path) == f"/{read_project().title}:{user.email}"
    assert query["secret"] == [begun["secret"]]
    assert (query["algorithm"], query["digits"], query["period"]) == (["SHA1"], ["6"], ["30"])


async def test_a_copy_of_the_database_holds_no_secret(
    client: httpx2.AsyncClient, user: Account, connection: AsyncConnection, clock: Clock
) -> None:
    secret, recovery_codes = await enable(client, user)

    stored = await connection.scalar(select(SecondFactor.secret))
    hashes = (await connection.scalars(text("SELECT code_hash FROM recovery_codes"))).all()

    assert secret not in str(stored)
    assert not {code.replace("-", "") for code in recovery_codes} & set(hashes)


@pytest.fixture
async def rotated(settings: Settings, database: Database, clock: Clock) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the service after a key rotation: SECRET_KEY is new, and the old key is a fallback."""
    both = settings.model_copy(update={"secret_key": NEW_KEY, "secret_key_fallbacks": (SecretStr(SECRET_KEY),)})
    async with open_client(create_app(both, database, clock=clock)) as client:
        yield client


async def test_secrets_stay_readable_after_key_rotation_and_next_use_reencrypts_them(
    client: httpx2.AsyncClient,
    rotated: httpx2.AsyncClient,
    user: Account,
    connection: AsyncConnection,
    clock: Clock,
) -> None:
    secret, _ = await enable(client, user)
    clock.now += 30
    before = await connection.scalar(select(SecondFactor.secret))

    answer = await sign_in(rotated, user, otp=show_code(secret, clock.now))

    assert answer == ""
    assert await connection.scalar(select(SecondFactor.secret)) != before


async def test_all_secrets_can_be_encrypted_anew_at_once(
    client: httpx2.AsyncClient, user: Account, settings: Settings, database: Database, clock: Clock
) -> None:
    secret, _ = await enable(client, user)
    clock.now += 30
    new = settings.model_copy(update={"secret_key": NEW_KEY})
    both = new.model_copy(update={"secret_key_fallbacks": (SecretStr(SECRET_KEY),)})

    async with database.write() as session:
        count = await reencrypt(Context.for_operator(session, database, both))

    assert count == 1
    async with open_client(create_app(new, database, clock=clock)) as after:
        assert await sign_in(after, user, otp=show_code(secret, clock.now)) == ""


async def test_a_confirmation_beyond_the_limit_uses_up_no_recovery_code(
    settings: Settings, database: Database, clock: Clock
) -> None:
    throttled = settings.model_copy(update={"throttling": True, "throttle_account_changes": 1})
    async with open_client(create_app(throttled, database, clock=clock)) as client:
        user = await create_account(client)
        _, codes = await enable(client, user)

        async def confirm(code: str) -> int:
            proof = {"current_password": PASSWORD, "otp": code}
            answer = await client.post("/api/v1/auth/confirmation", json=proof, headers=user.headers)
            return answer.status_code

        # The setup of the second factor needed a confirmation too, so this one exceeds the limit of one.
        assert await confirm(codes[0]) == 429
        clock.now += settings.throttle_memory_seconds
        assert await confirm(codes[0]) == 201


async def test_repeated_wrong_codes_are_throttled(settings: Settings, database: Database, clock: Clock) -> None:
    throttled = settings.model_copy(update={"throttling": True, "throttle_account_attempts": 3})
    async with open_client(create_app(throttled, database, clock=clock)) as client:
        user = await create_account(client)
        await enable(client, user)

        answers = [
            (await request_token(client, username=user.email, password=PASSWORD, otp="000000")).status_code
            for _ in range(4)
        ]

    assert answers == [400, 400, 400, 429]


async def list_events(client: httpx2.AsyncClient, admin: Account, user: Account) -> list[str]:
    query = {"user_id": user.id, "limit": "100"}
    events = await client.get("/api/v1/audit-events", params=query, headers=admin.headers)
    return [event["event"] for event in events.json()["items"]]


async def test_right_password_with_missing_or_wrong_code_is_recorded_and_logged(
    client: httpx2.AsyncClient, user: Account, admin: Account, clock: Clock, logs: io.StringIO
) -> None:
    def count(outcome: str) -> float:
        return REGISTRY.get_sample_value("sign_ins_total", {"outcome": outcome}) or 0

    await enable(client, user)
    missing, refused = count("second_factor_missing"), count("second_factor_refused")

    await sign_in(client, user)
    await sign_in(client, user, otp="000000")
    wrongly = {**PROOF, "otp": "000000"}
    await client.post(f"{PATH}/disable", json=wrongly, headers=user.headers)

    events = await list_events(client, admin, user)
    assert (events.count("second-factor.missing"), events.count("second-factor.refused")) == (1, 2)
    assert count("second_factor_missing") - missing == 1
    assert count("second_factor_refused") - refused == 1
    assert [logs.getvalue().count(f"second-factor.{each}") for each in ("missing", "refused")] == [1, 2]


@pytest.mark.parametrize("form", [{}, {"otp": "000000"}, {"otp": "ABCD-EFGH-IJKL-MNOP"}, {"scope": "admin"}])
async def test_owner_is_notified_once_of_many_failures_in_a_row(
    client: httpx2.AsyncClient, user: Account, mailbox: Mailbox, clock: Clock, form: dict[str, str]
) -> None:
    secret, _ = await enable(client, user)

    async def count_messages() -> int:
        messages = await mailbox.read(user.email)
        return sum("entered your password" in message["Subject"] for message in messages)

    told = []
    for again in range(2):
        clock.now += 60
        for _ in range(4):
            await sign_in(client, user, **form)
        told.append(await count_messages())
        if again:
            continue
        # The owner, who had no code at hand, now signs in; this resets the count of failures.
        assert await sign_in(client, user, otp=show_code(secret, clock.now)) == ""
    for _ in range(4):
        await sign_in(client, user, **form)
    told.append(await count_messages())

    assert told == [0, 0, 1]


async def test_codes_are_blocked_after_too_many_failures_until_password_reset(
    client: httpx2.AsyncClient, user: Account, mailbox: Mailbox, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codes, "MAX_FAILURES", 8, raising=False)
    secret, recovery_codes = await enable(client, user)
    wrongly = {**PROOF, "otp": "000000"}
    for _ in range(4):
        await sign_in(client, user, otp="000000")
        await client.post(f"{PATH}/disable", json=wrongly, headers=user.headers)
    clock.now += 60

    blocked = [await sign_in(client, user, otp=otp) for otp in (show_code(secret, clock.now), recovery_codes[0])]
    disabled = await client.post(f"{PATH}/disable", json={**PROOF, "otp": recovery_codes[0]}, headers=user.headers)
    asked = await sign_in(client, user)
    await client.post("/api/v1/auth/password/forgot", json={"email": user.email})
    body = (await mailbox.read(user.email))[-1].get_body(("plain",))
    assert body is not None
    (token,) = re.findall(r"(?m)^\S*?([A-Za-z0-9_-]{43})\s*$", body.get_content())
    user.password = "another long password"
    await client.post("/api/v1/auth/password/reset", json={"token": token, "new_password": user.password})
    after = [await sign_in(client, user, otp=otp) for otp in (show_code(secret, clock.now), recovery_codes[0])]

    assert blocked == ["invalid_grant", "invalid_grant"]
    assert disabled.status_code == 422
    assert asked == "mfa_required"
    assert after == ["", ""]


async def test_sign_ins_without_code_do_not_block_the_second_factor(
    client: httpx2.AsyncClient, user: Account, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codes, "MAX_FAILURES", 8, raising=False)
    secret, _ = await enable(client, user)
    for _ in range(12):
        assert await sign_in(client, user) == "mfa_required"
    clock.now += 60

    assert await sign_in(client, user, otp=show_code(secret, clock.now)) == ""


async def test_concurrent_guesses_cannot_exceed_the_limit_of_failures(
    live_url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codes, "MAX_FAILURES", 8, raising=False)
    use_code = codes.use_code
    looked_at: list[str] = []

    async def use_and_count(ctx: Context, user_id: UUID, factor: codes.FactorRecord, code: str) -> bool:
        looked_at.append(code)
        await asyncio.sleep(0.01)
        return await use_code(ctx, user_id, factor, code)

    # Long enough that no request gives up waiting for a connection on a slow machine.
    patient = make_settings(live_url, database_pool_size=6, database_pool_timeout_seconds=60)
    apps = [create_app(patient, clock=clock) for _ in range(2)]
    async with open_client(apps[0]) as one, open_client(apps[1]) as other:
        user = await create_account(one)
        await enable(one, user)
        monkeypatch.setattr(codes, "use_code", use_and_count)
        guesses = [sign_in(client, user, otp="000000") for client in [one, other] * 10]
        answers = await asyncio.gather(*guesses)

    assert answers == ["invalid_grant"] * 20
    assert len(looked_at) == 8


def test_codes_are_refused_well_before_a_hundred_failures() -> None:
    assert codes.NOTICE_FAILURES < codes.MAX_FAILURES <= 50


async def test_a_refused_scope_uses_up_no_recovery_code(
    client: httpx2.AsyncClient, user: Account, clock: Clock
) -> None:
    _, recovery_codes = await enable(client, user)

    refused = await sign_in(client, user, otp=recovery_codes[0], scope="admin")

    assert refused == "invalid_scope"
    assert await sign_in(client, user, otp=recovery_codes[0]) == ""


async def test_administrators_need_a_second_factor_where_it_is_required(
    settings: Settings, database: Database, clock: Clock
) -> None:
    strict = settings.model_copy(update={"admin_second_factor_required": True})
    async with open_client(create_app(strict, database, clock=clock)) as client:

        async def list_users(token: str) -> int:
            return (await client.get("/api/v1/users", headers={"Authorization": f"Bearer {token}"})).status_code

        admin = await create_account(client, database, is_admin=True)
        asked = await request_token(client, username=admin.email, password=PASSWORD, scope="admin")
        without = await list_users(admin.access_token)
        secret, recovery_codes = await enable(client, admin)
        clock.now += 60
        code = show_code(secret, clock.now)
        signed_in = (await request_token(client, username=admin.email, password=PASSWORD, otp=code)).json()
        with_factor = await list_users(signed_in["access_token"])
        disable = {**PROOF, "otp": recovery_codes[0]}
        await client.post(f"{PATH}/disable", json=disable, headers=admin.headers)
        refreshed = (await request_token(client, "refresh_token", refresh_token=signed_in["refresh_token"])).json()
        change = {"current_password": PASSWORD, "new_password": "another long password"}
        headers = {"Authorization": f"Bearer {signed_in['access_token']}"}
        changed = (await client.post("/api/v1/users/me/password", json=change, headers=headers)).json()

    assert asked.json()["error"] == "invalid_scope"
    assert "second factor" in asked.json()["error_description"]
    assert (without, with_factor) == (403, 200)
    assert signed_in["scope"] == "account admin"
    assert refreshed["scope"] == "account"
    assert changed["scope"] == "account"
