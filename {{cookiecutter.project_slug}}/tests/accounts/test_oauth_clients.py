"""The OAuth client libraries requests-oauthlib and Authlib, unmodified, over a real socket."""

from collections.abc import Iterator
from dataclasses import dataclass
from uuid import uuid4

import pytest
from authlib.integrations.base_client import OAuthError  # type: ignore[import-untyped]  # it has no annotations
from authlib.integrations.requests_client import OAuth2Session as AuthlibSession  # type: ignore[import-untyped]  # it has no annotations
from oauthlib.oauth2 import InvalidGrantError, LegacyApplicationClient
from requests_oauthlib import OAuth2Session

from tests.support.accounts import PASSWORD, TOKEN_PATH
from tests.support.databases import create_test_database, migrate
from tests.support.servers import SERVE, run_server

pytestmark = pytest.mark.processes

CLIENT_ID = "a client that the service does not know, nor asks for"


@dataclass
class Site:
    token_url: str
    me_url: str
    email: str


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A running service with a user."""
    with create_test_database(tmp_path_factory.mktemp("oauth")) as url:
        migrate(url)
        with run_server(url, SERVE) as server, server.open_client() as client:
            email = f"{uuid4().hex}@example.com"
            assert client.post("/api/v1/users", json={"email": email, "password": PASSWORD}).status_code == 201
            yield Site(f"{server.base_url}{TOKEN_PATH}", f"{server.base_url}/api/v1/users/me", email)


@pytest.fixture(autouse=True)
def plain_http(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OAUTHLIB_INSECURE_TRANSPORT", "1")


@pytest.fixture
def oauthlib_session() -> Iterator[OAuth2Session]:
    with OAuth2Session(client=LegacyApplicationClient(client_id=CLIENT_ID)) as session:
        yield session


@pytest.fixture
def authlib_session(site: Site) -> Iterator[AuthlibSession]:
    with AuthlibSession(client_id=CLIENT_ID, token_endpoint=site.token_url) as session:
        yield session


def test_oauthlib_obtains_uses_and_refreshes_a_token(site: Site, oauthlib_session: OAuth2Session) -> None:
    first = oauthlib_session.fetch_token(site.token_url, username=site.email, password=PASSWORD)
    before = oauthlib_session.get(site.me_url)
    second = oauthlib_session.refresh_token(site.token_url)
    after = oauthlib_session.get(site.me_url)

    assert before.json()["email"] == after.json()["email"] == site.email
    assert first["access_token"] != second["access_token"]
    assert first["refresh_token"] != second["refresh_token"]
    assert second["expires_in"] == 900


def test_oauthlib_refreshes_a_token_by_itself_when_it_has_expired(site: Site) -> None:
    saved: list[dict[str, str]] = []
    with OAuth2Session(client=LegacyApplicationClient(client_id=CLIENT_ID)) as session:
        token = session.fetch_token(site.token_url, username=site.email, password=PASSWORD)
    expired = {**token, "expires_at": 1, "expires_in": -1}

    with OAuth2Session(
        CLIENT_ID, token=expired, auto_refresh_url=site.token_url, token_updater=saved.append
    ) as session:
        response = session.get(site.me_url)

    assert response.json()["email"] == site.email
    assert saved[0]["refresh_token"] != token["refresh_token"]


def test_oauthlib_understands_that_a_password_is_wrong(site: Site, oauthlib_session: OAuth2Session) -> None:
    with pytest.raises(InvalidGrantError) as refusal:
        oauthlib_session.fetch_token(site.token_url, username=site.email, password="not this one at all")

    assert refusal.value.status_code == 400
    assert refusal.value.description


def test_oauthlib_understands_that_a_refresh_token_is_wrong(site: Site, oauthlib_session: OAuth2Session) -> None:
    with pytest.raises(InvalidGrantError) as refusal:
        oauthlib_session.refresh_token(site.token_url, refresh_token="never issued")

    assert refusal.value.status_code == 400
    assert refusal.value.description


def test_authlib_obtains_uses_refreshes_and_revokes_a_token(site: Site, authlib_session: AuthlibSession) -> None:
    first = authlib_session.fetch_token(site.token_url, username=site.email, password=PASSWORD)
    before = authlib_session.get(site.me_url)
    second = authlib_session.refresh_token(site.token_url)
    after = authlib_session.get(site.me_url)
    revoked = authlib_session.revoke_token(site.token_url.replace("token", "revoke"), second["refresh_token"])
    signed_out = authlib_session.get(site.me_url)

    assert before.json()["email"] == after.json()["email"] == site.email
    assert first["refresh_token"] != second["refresh_token"]
    assert (revoked.status_code, signed_out.status_code) == (200, 401)


def test_authlib_refreshes_a_token_by_itself_when_it_has_expired(site: Site, authlib_session: AuthlibSession) -> None:
    token = authlib_session.fetch_token(site.token_url, username=site.email, password=PASSWORD)
    authlib_session.token = {**token, "expires_at": 1}

    response = authlib_session.get(site.me_url)

    assert response.json()["email"] == site.email
    assert authlib_session.token["refresh_token"] != token["refresh_token"]


def test_authlib_understands_that_a_password_is_wrong(site: Site, authlib_session: AuthlibSession) -> None:
    with pytest.raises(OAuthError) as refusal:
        authlib_session.fetch_token(site.token_url, username=site.email, password="not this one at all")

    assert refusal.value.error == "invalid_grant"
    assert refusal.value.description


def test_authlib_understands_that_a_refresh_token_is_wrong(site: Site, authlib_session: AuthlibSession) -> None:
    with pytest.raises(OAuthError) as refusal:
        authlib_session.refresh_token(site.token_url, refresh_token="never issued")

    assert refusal.value.error == "invalid_grant"
    assert refusal.value.description
