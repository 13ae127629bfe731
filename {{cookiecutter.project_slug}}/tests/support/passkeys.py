"""A browser and an authenticator with passkeys (WebAuthn)."""

import base64
import hashlib
import json
import secrets
from dataclasses import dataclass, field
from typing import Any

import httpx2
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from webauthn.helpers import encode_cbor

from tests.support.accounts import PASSWORD, Account

PATH = "/api/v1/auth/passkeys"
SIGN_IN = f"{PATH}/sign-in"
ORIGIN = "https://localhost"
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
    """Return the recovery codes."""
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
