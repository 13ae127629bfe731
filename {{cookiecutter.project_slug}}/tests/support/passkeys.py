"""A browser and an authenticator with passkeys (WebAuthn)."""

import base64
import hashlib
import json
import secrets
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import httpx2
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection
from webauthn.helpers import encode_cbor

from app.core.audit.models import AuditEvent
from app.outbox.models import OutgoingEmail
from tests.support.accounts import PASSWORD, Account, request_token

PATH = "/api/v1/auth/passkeys"
SIGN_IN = f"{PATH}/sign-in"
ORIGIN = "https://localhost"
ME = "/api/v1/users/me"
PRESENT, VERIFIED, ATTESTED = 1, 4, 64


def encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@dataclass
class Authenticator:
    """A passkey in a browser at `origin`. Each use increases its signature counter, unless the counter is 0."""

    origin: str = ORIGIN
    host: str = "localhost"
    count: int = 1
    flags: int = PRESENT | VERIFIED
    id: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    key: EllipticCurvePrivateKey = field(default_factory=lambda: generate_private_key(SECP256R1()))

    def create(self, options: dict[str, Any]) -> dict[str, Any]:
        data = self._data(ATTESTED) + bytes(16) + len(self.id).to_bytes(2, "big") + self.id + self._public_key()
        attestation = encode_cbor({"fmt": "none", "attStmt": {}, "authData": data})
        client_data = self._client_data("webauthn.create", options["challenge"])
        response = {"clientDataJSON": encode(client_data), "attestationObject": encode(attestation)}
        self._count_up()
        return self._credential({**response, "transports": ["usb"]})

    def get(self, options: dict[str, Any]) -> dict[str, Any]:
        client_data = self._client_data("webauthn.get", options["challenge"])
        data = self._data()
        signature = self.key.sign(data + hashlib.sha256(client_data).digest(), ECDSA(SHA256()))
        parts = {"clientDataJSON": client_data, "authenticatorData": data, "signature": signature}
        self._count_up()
        return self._credential({name: encode(part) for name, part in parts.items()})

    def _count_up(self) -> None:
        if self.count:
            self.count += 1

    def _credential(self, response: dict[str, Any]) -> dict[str, Any]:
        credential = {"id": encode(self.id), "rawId": encode(self.id), "type": "public-key"}
        return {**credential, "clientExtensionResults": {}, "response": response}

    def _client_data(self, kind: str, challenge: str) -> bytes:
        return json.dumps({"type": kind, "challenge": challenge, "origin": self.origin}).encode()

    def _data(self, more_flags: int = 0) -> bytes:
        flags = bytes([self.flags | more_flags])
        return hashlib.sha256(self.host.encode()).digest() + flags + self.count.to_bytes(4, "big")

    def _public_key(self) -> bytes:
        numbers = self.key.public_key().public_numbers()
        x, y = numbers.x.to_bytes(32, "big"), numbers.y.to_bytes(32, "big")
        return encode_cbor({1: 2, 3: -7, -1: 1, -2: x, -3: y})


async def begin(client: httpx2.AsyncClient, user: Account, **proof: object) -> dict[str, Any]:
    begun = await client.post(f"{PATH}/options", json={"current_password": PASSWORD, **proof}, headers=user.headers)
    assert begun.status_code == 200, begun.text
    options: dict[str, Any] = begun.json()
    return options


async def add(
    client: httpx2.AsyncClient, user: Account, key: Authenticator, name: str = "Key", **proof: object
) -> httpx2.Response:
    options = await begin(client, user, **proof)
    return await client.post(PATH, json={"name": name, "credential": key.create(options)}, headers=user.headers)


async def add_first(client: httpx2.AsyncClient, user: Account, key: Authenticator) -> list[str]:
    """Add the account's first passkey, and return the recovery codes."""
    added = await add(client, user, key)
    assert added.status_code == 201, added.text
    codes: list[str] = added.json()["recovery_codes"]
    return codes


async def use(client: httpx2.AsyncClient, key: Authenticator) -> dict[str, Any]:
    """Return the key's response to a new challenge."""
    asked = await client.post(f"{SIGN_IN}/options")
    assert asked.status_code == 200, asked.text
    return key.get(asked.json())


async def sign_in(client: httpx2.AsyncClient, key: Authenticator, **more: object) -> httpx2.Response:
    return await client.post(SIGN_IN, json={"credential": await use(client, key), **more})


async def list_events(connection: AsyncConnection, user: Account) -> list[str]:
    statement = select(AuditEvent.event).where(AuditEvent.user_id == UUID(user.id)).order_by(AuditEvent.id)
    return list((await connection.scalars(statement)).all())


async def list_messages(connection: AsyncConnection, user: Account) -> list[str]:
    return list((await connection.scalars(select(OutgoingEmail.kind).where(OutgoingEmail.address == user.email))).all())


async def list_names(client: httpx2.AsyncClient, user: Account) -> list[str]:
    return [passkey["name"] for passkey in (await client.get(PATH, headers=user.headers)).json()]


async def remove_oldest(client: httpx2.AsyncClient, user: Account, **proof: object) -> httpx2.Response:
    passkey = (await client.get(PATH, headers=user.headers)).json()[0]
    body = {"current_password": PASSWORD, **proof}
    return await client.request("DELETE", f"{PATH}/{passkey['id']}", json=body, headers=user.headers)


async def sign_in_with_password(client: httpx2.AsyncClient, user: Account, **form: str) -> str:
    """Return the error code of the response, or an empty string if the sign-in succeeds."""
    answer = await request_token(client, username=user.email, password=PASSWORD, **form)
    return str(answer.json().get("error", ""))


def named(credential: dict[str, Any]) -> dict[str, Any]:
    return {"name": "Key", "credential": credential}


# Invalid base64url, JSON, CBOR or content; none may cause an internal error.
GARBAGE: list[object] = [
    "",
    "A",
    "%",
    "AA",
    "x" * 9000,
    "e30",
    encode(b'{"challenge": 1}'),
    encode(b"[" * 5000),
    None,
    1,
    {},
]
