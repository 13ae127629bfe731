import httpx2
import pytest

from app.core.config.settings import Settings
from app.core.db.session import Database
from tests.support.accounts import PASSWORD, Account, new_address, request_token
from tests.support.applications import create_app
from tests.support.clients import open_client
from tests.support.databases import make_settings
from tests.support.mail import MailServer, find_token
from tests.support.recovery import API, NEW_PASSWORD, Postman, can_sign_in, post
from tests.support.timing import share_of_slower


async def test_verified_address_gets_no_further_verification_message(
    client: httpx2.AsyncClient, user: Account, postman: Postman
) -> None:
    before = (await client.get(f"{API}/users/me", headers=user.headers)).json()["email_verified_at"]
    await post(client, "/auth/email/verification", email=user.email)

    token = await postman.read_token(user.email)
    verified = await post(client, "/auth/email/verify", token=token, password=PASSWORD)
    again = await post(client, "/auth/email/verification", email=user.email)

    assert before is None
    assert (verified.status_code, again.status_code) == (204, 202)
    assert (await client.get(f"{API}/users/me", headers=user.headers)).json()["email_verified_at"] is not None
    # The second request sends no message, because the address is already verified.
    assert len(await postman.read(user.email)) == 1


def describe(answer: httpx2.Response) -> dict[str, str]:
    """Return the problem document without the id of its request."""
    return {name: value for name, value in answer.json().items() if name != "request_id"}


class TestVerificationRequired:
    @pytest.fixture
    def settings(self, migrated_url: str, mail: MailServer) -> Settings:
        return make_settings(migrated_url, **mail.settings, email_verification_required=True)

    async def test_user_cannot_sign_in_before_address_is_verified(
        self, client: httpx2.AsyncClient, postman: Postman
    ) -> None:
        email = new_address()
        created = await post(client, "/users", email=email, password=PASSWORD)
        early = await request_token(client, username=email, password=PASSWORD)
        guessed = await request_token(client, username=email, password="wrong" * 4)
        token = await postman.read_token(email)
        verified = await post(client, "/auth/email/verify", token=token, password=PASSWORD)

        assert (created.status_code, created.content) == (202, b"")
        assert early.status_code == 400
        assert early.json()["error"] == "invalid_grant"
        assert "not verified" in early.json()["error_description"]
        assert early.json() == guessed.json()
        assert verified.status_code == 204
        assert await can_sign_in(client, email, PASSWORD)

    async def test_sign_up_does_not_reveal_whether_account_exists(
        self, client: httpx2.AsyncClient, postman: Postman
    ) -> None:
        email = new_address()
        new = await post(client, "/users", email=email, password=PASSWORD)
        token = await postman.read_token(email)
        again = await post(client, "/users", email=email, password=NEW_PASSWORD)
        unverified = await postman.read(email)
        await post(client, "/auth/email/verify", token=token, password=PASSWORD)
        taken = await post(client, "/users", email=email, password=NEW_PASSWORD)

        messages = await postman.read(email)
        assert (again.status_code, again.content) == (202, b"")
        assert [message["Subject"] for message in unverified] == [unverified[0]["Subject"]] * 2
        assert (new.status_code, new.content) == (taken.status_code, taken.content) == (202, b"")
        assert new.headers.keys() == taken.headers.keys()
        assert "already have an account" in messages[-1]["Subject"]
        assert await can_sign_in(client, email, PASSWORD)
        assert not await can_sign_in(client, email, NEW_PASSWORD)

    @pytest.mark.parametrize("is_verified", [True, False])
    @pytest.mark.usefixtures("clock")
    async def test_sign_in_after_sign_up_does_not_reveal_whether_account_exists(
        self, settings: Settings, database: Database, postman: Postman, is_verified: bool
    ) -> None:
        throttled = settings.model_copy(update={"throttling": True, "throttle_account_attempts": 2})
        taken, free = new_address(), new_address()
        async with open_client(create_app(throttled, database), address="192.0.2.1") as owner:
            await post(owner, "/users", email=taken, password=PASSWORD)
            if is_verified:
                token = await postman.read_token(taken)
                await post(owner, "/auth/email/verify", token=token, password=PASSWORD)

        answers = {}
        async with open_client(create_app(throttled, database), address="198.51.100.7") as stranger:
            for email in (taken, free):
                await post(stranger, "/users", email=email, password=NEW_PASSWORD)
                attempts = [await request_token(stranger, username=email, password=NEW_PASSWORD) for _ in range(4)]
                answers[email] = [
                    (each.status_code, each.headers.get("retry-after"), describe(each)) for each in attempts
                ]

        assert answers[taken] == answers[free]
        assert [status for status, *_ in answers[free]] == [400, 400, 429, 429]

    async def test_password_reset_also_verifies_the_address(self, client: httpx2.AsyncClient, postman: Postman) -> None:
        email = new_address()
        await post(client, "/users", email=email, password=PASSWORD)
        await post(client, "/auth/password/forgot", email=email)

        tokens = [find_token(message) for message in await postman.read(email)]
        await post(client, "/auth/password/reset", token=tokens[-1], new_password=NEW_PASSWORD)

        assert await can_sign_in(client, email, NEW_PASSWORD)

    async def test_response_time_of_sign_up_does_not_reveal_whether_account_exists(
        self, client: httpx2.AsyncClient
    ) -> None:
        taken = new_address()
        await post(client, "/users", email=taken, password=PASSWORD)

        async def sign_up(email: str) -> None:
            await post(client, "/users", email=email, password=PASSWORD)

        share = await share_of_slower(lambda: sign_up(taken), lambda: sign_up(new_address()))
        assert 0.1 < share < 0.9
