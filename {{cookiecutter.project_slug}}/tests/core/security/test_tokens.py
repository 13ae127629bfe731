"""Access tokens, forged in every way that python-jose is known to accept without the checks of TokenSigner."""

import base64
import hashlib
import hmac
import json
import time
from typing import Any
from uuid import uuid4

import pytest

from app.core.errors import UnauthorizedError
from app.core.project import read_project
from app.core.security.tokens import LEEWAY_SECONDS, TokenSigner, hash_opaque_token
from tests.support.databases import SECRET_KEY, make_settings, unreachable_url

ISSUER = read_project().name
HEADER = {"alg": "HS256", "typ": "at+jwt"}


@pytest.fixture
def tokens() -> TokenSigner:
    return make_tokens()


def make_tokens(**changes: object) -> TokenSigner:
    return TokenSigner(make_settings(unreachable_url(), **changes))


def claims(**changes: object) -> dict[str, object]:
    now = int(time.time())
    return {
        "iss": ISSUER,
        "aud": ISSUER,
        "sub": str(uuid4()),
        "sid": str(uuid4()),
        "scope": "account",
        "jti": uuid4().hex,
        "iat": now,
        "exp": now + 60,
        **changes,
    }


def encode(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).decode().rstrip("=")


def sign(header: object, payload: object, key: str = SECRET_KEY, digest: str = "sha256") -> str:
    """Sign a token with any header and payload; a string is used unchanged, so that it need not be valid JSON."""
    parts = [
        encode(part.encode() if isinstance(part, str) else json.dumps(part).encode()) for part in (header, payload)
    ]
    signature = hmac.new(key.encode(), ".".join(parts).encode(), getattr(hashlib, digest)).digest()
    return ".".join([*parts, encode(signature)])


def without(claim: str) -> dict[str, object]:
    return {name: value for name, value in claims().items() if name != claim}


def test_signed_token_is_valid_and_returns_its_claims(tokens: TokenSigner) -> None:
    user_id, session_id = uuid4(), uuid4()

    read = tokens.verify(tokens.sign(user_id, session_id, "account"))

    assert (read.sub, read.sid) == (user_id, session_id)
    assert read.exp - read.iat == 15 * 60


def test_token_of_forgery_helper_is_valid_when_unchanged(tokens: TokenSigner) -> None:
    assert tokens.verify(sign(HEADER, claims()))


NESTED = '{"alg":"HS256","typ":"at+jwt","x":' + "[" * 1000 + "]" * 1000 + "}"

FORGERIES: dict[str, Any] = {
    "empty": lambda: "",
    "no parts": lambda: "token",
    "four parts": lambda: sign(HEADER, claims()) + ".x",
    "dots": lambda: "..",
    "not base64": lambda: "!.!.!",
    "not ASCII": lambda: "é.é.é",
    "surrogate": lambda: "\ud800.\ud800.\ud800",
    "oversize": lambda: sign(HEADER, claims(x="x" * 4096)),
    "oversize header": lambda: sign({**HEADER, "x": "x" * 512}, claims()),
    "nested header": lambda: sign(NESTED, claims()),
    "nested payload": lambda: sign(HEADER, "[" * 1000 + "]" * 1000),
    "other key": lambda: sign(HEADER, claims(), key="another key with enough bytes 012"),
    "empty key": lambda: sign(HEADER, claims(), key=""),
    "alg none": lambda: (
        f"{encode(json.dumps({**HEADER, 'alg': 'none'}).encode())}.{encode(json.dumps(claims()).encode())}."
    ),
    "alg none, signed": lambda: sign({**HEADER, "alg": "none"}, claims()),
    "alg HS512": lambda: sign({**HEADER, "alg": "HS512"}, claims(), digest="sha512"),
    "alg RS256": lambda: sign({**HEADER, "alg": "RS256"}, claims()),
    "alg list": lambda: sign({**HEADER, "alg": ["HS256"]}, claims()),
    "alg null": lambda: sign({**HEADER, "alg": None}, claims()),
    "alg missing": lambda: sign({"typ": "at+jwt"}, claims()),
    "no type": lambda: sign({"alg": "HS256"}, claims()),
    "wrong type": lambda: sign({"alg": "HS256", "typ": "JWT"}, claims()),
    "crit": lambda: sign({**HEADER, "crit": ["b64"], "b64": False}, claims()),
    "header a list": lambda: sign(["HS256"], claims()),
    "payload a list": lambda: sign(HEADER, ["sub"]),
    "payload not JSON": lambda: sign(HEADER, "sub"),
    "expired": lambda: sign(HEADER, claims(exp=int(time.time()) - 60)),
    "exp null": lambda: sign(HEADER, claims(exp=None)),
    "exp text": lambda: sign(HEADER, claims(exp="tomorrow")),
    "exp huge": lambda: sign(HEADER, claims(exp=1e400)),
    "future": lambda: sign(HEADER, claims(iat=int(time.time()) + 60)),
    "not yet": lambda: sign(HEADER, claims(nbf=int(time.time()) + 60)),
    "other audience": lambda: sign(HEADER, claims(aud="other")),
    "other issuer": lambda: sign(HEADER, claims(iss="other")),
    "issuer a list": lambda: sign(HEADER, claims(iss=[ISSUER, "other"])),
    "sub not a UUID": lambda: sign(HEADER, claims(sub="admin")),
    "sub a number": lambda: sign(HEADER, claims(sub=1)),
    "sid not a UUID": lambda: sign(HEADER, claims(sid="x")),
    "jti a number": lambda: sign(HEADER, claims(jti=1)),
    **{f"without {claim}": (lambda claim=claim: sign(HEADER, without(claim))) for claim in claims()},
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_token_is_refused(tokens: TokenSigner, forgery: str) -> None:
    token = FORGERIES[forgery]()

    with pytest.raises(UnauthorizedError):
        tokens.verify(token)


def test_previously_verified_token_still_expires() -> None:
    now = time.time()
    tokens = TokenSigner(make_settings(unreachable_url()), clock=lambda: now)
    token = sign(HEADER, claims())
    tokens.verify(token)
    now += 60 + LEEWAY_SECONDS + 1

    with pytest.raises(UnauthorizedError):
        tokens.verify(token)


def test_verified_token_is_cached_and_altered_token_is_refused(
    tokens: TokenSigner, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = sign(HEADER, claims())
    first = tokens.verify(token)
    monkeypatch.setattr("app.core.security.tokens.jwt.decode", None)

    assert tokens.verify(token) is first
    with pytest.raises(UnauthorizedError):
        tokens.verify(f"{token}==")


@pytest.mark.parametrize("key", ["true", "null", '"abc"', "[1, 2]", '{"k": "v"}', "1234"])
def test_a_secret_that_happens_to_be_json_signs_and_verifies(key: str) -> None:
    tokens = make_tokens(secret_key=key)

    assert tokens.verify(tokens.sign(uuid4(), uuid4(), "account"))


def test_former_key_verifies_tokens_and_never_signs() -> None:
    before = make_tokens()
    after = make_tokens(secret_key="a new key with enough bytes 0123456", secret_key_fallbacks=(SECRET_KEY,))

    assert after.verify(before.sign(uuid4(), uuid4(), "account"))
    with pytest.raises(UnauthorizedError):
        before.verify(after.sign(uuid4(), uuid4(), "account"))


def test_opaque_token_with_invalid_unicode_is_hashed() -> None:
    assert len(hash_opaque_token("\ud800")) == 64
