"""Passkeys; the only module that uses the library `webauthn`, which it imports in a thread at the first use."""

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import urlsplit

from app.core.config.settings import Settings
from app.core.hosts import normalize_origin
from app.core.project import read_project

# Importing the library takes a third of a second: each function that needs it imports it.

JsonObject: TypeAlias = dict[str, Any]
# How long browsers wait for the user, in milliseconds.
TIMEOUT = 5 * 60 * 1000
# Enough for an RSA key of 4096 bits, which has 540 bytes.
MAX_PUBLIC_KEY_BYTES = 1024
# The maximum of Web Authentication Level 3.
MAX_CREDENTIAL_ID_BYTES = 1023


class InvalidPasskeyError(Exception):
    """The response of an authenticator cannot be verified."""


class Person(NamedTuple):
    """The account data that authenticators store and display; the id must not be personal data."""

    id: bytes
    email: str
    name: str


class Registration(NamedTuple):
    """The response of a browser that created a passkey."""

    credential_id: bytes
    client_data: bytes
    attestation: bytes


class Assertion(NamedTuple):
    """The response of a browser that used a passkey."""

    credential_id: bytes
    client_data: bytes
    authenticator_data: bytes
    signature: bytes


class NewPasskey(NamedTuple):
    credential_id: bytes
    public_key: bytes
    sign_count: int


class Site(NamedTuple):
    """The host that passkeys belong to (RP ID), and the origin that browsers report."""

    host: str
    origin: str

    @classmethod
    def of(cls, settings: Settings) -> "Site":
        url = urlsplit(settings.service_url)
        return cls(url.hostname or "", normalize_origin(f"{url.scheme}://{url.netloc}"))


async def make_creation_options(
    settings: Settings, challenge: bytes, person: Person, known: Sequence[str]
) -> JsonObject:
    """Return the argument of `navigator.credentials.create` as JSON; `known` are the ids of the account's passkeys."""
    return await asyncio.to_thread(_make_creation_options, Site.of(settings), challenge, person, known)


def _make_creation_options(site: Site, challenge: bytes, person: Person, known: Sequence[str]) -> JsonObject:
    from webauthn import base64url_to_bytes, generate_registration_options
    from webauthn.helpers import options_to_json_dict
    from webauthn.helpers.structs import (
        AuthenticatorSelectionCriteria,
        PublicKeyCredentialDescriptor,
        ResidentKeyRequirement,
        UserVerificationRequirement,
    )

    options = generate_registration_options(
        rp_id=site.host,
        rp_name=read_project().title,
        user_id=person.id,
        user_name=person.email,
        user_display_name=person.name or person.email,
        challenge=challenge,
        timeout=TIMEOUT,
        # Require a discoverable credential, so that sign-in needs no address. Require user verification (a PIN or
        # biometrics) at each use.
        authenticator_selection=AuthenticatorSelectionCriteria(
            resident_key=ResidentKeyRequirement.REQUIRED,
            user_verification=UserVerificationRequirement.REQUIRED,
        ),
        exclude_credentials=[PublicKeyCredentialDescriptor(base64url_to_bytes(each)) for each in known],
    )
    return options_to_json_dict(options)


async def make_request_options(settings: Settings, challenge: bytes) -> JsonObject:
    """Return the argument of `navigator.credentials.get` as JSON; only the challenge differs between requests."""
    return await asyncio.to_thread(_make_request_options, Site.of(settings), challenge)


def _make_request_options(site: Site, challenge: bytes) -> JsonObject:
    from webauthn import generate_authentication_options
    from webauthn.helpers import options_to_json_dict
    from webauthn.helpers.structs import UserVerificationRequirement

    options = generate_authentication_options(
        rp_id=site.host, challenge=challenge, timeout=TIMEOUT, user_verification=UserVerificationRequirement.REQUIRED
    )
    return options_to_json_dict(options)


async def verify_registration(settings: Settings, challenge: bytes, registration: Registration) -> NewPasskey:
    """Verify the response of a registration, and return the new passkey; raises InvalidPasskeyError.

    Attestation is not requested, because authenticators of every model are accepted.
    """
    return await asyncio.to_thread(_verify_registration, Site.of(settings), challenge, registration)


def _verify_registration(site: Site, challenge: bytes, sent: Registration) -> NewPasskey:
    from webauthn import verify_registration_response
    from webauthn.helpers import (
        bytes_to_base64url,
        decode_credential_public_key,
        decoded_public_key_to_cryptography,
    )
    from webauthn.helpers.structs import AuthenticatorAttestationResponse, RegistrationCredential

    response = AuthenticatorAttestationResponse(client_data_json=sent.client_data, attestation_object=sent.attestation)
    credential = RegistrationCredential(bytes_to_base64url(sent.credential_id), sent.credential_id, response)
    try:
        verified = verify_registration_response(
            credential=credential,
            expected_challenge=challenge,
            expected_rp_id=site.host,
            expected_origin=site.origin,
            require_user_verification=True,
        )
        # Reject a key that cannot be decoded, because it would fail at each sign-in.
        decoded_public_key_to_cryptography(decode_credential_public_key(verified.credential_public_key))
    # The library and its parsers raise errors of many types.
    except Exception as error:
        raise InvalidPasskeyError(str(error)) from error
    if (
        verified.credential_id != sent.credential_id
        or len(verified.credential_id) > MAX_CREDENTIAL_ID_BYTES
        or len(verified.credential_public_key) > MAX_PUBLIC_KEY_BYTES
    ):
        raise InvalidPasskeyError("The id does not match, or the id or the key is too long.")
    return NewPasskey(verified.credential_id, verified.credential_public_key, verified.sign_count)


async def verify_assertion(settings: Settings, challenge: bytes, assertion: Assertion, public_key: bytes) -> int:
    """Verify the response of a sign-in, and return its signature counter; raises InvalidPasskeyError.

    The caller must compare the counter with the stored one, to detect a copied passkey.
    """
    return await asyncio.to_thread(_verify_assertion, Site.of(settings), challenge, assertion, public_key)


def _verify_assertion(site: Site, challenge: bytes, sent: Assertion, public_key: bytes) -> int:
    from webauthn import verify_authentication_response
    from webauthn.helpers import bytes_to_base64url
    from webauthn.helpers.structs import AuthenticationCredential, AuthenticatorAssertionResponse

    response = AuthenticatorAssertionResponse(
        client_data_json=sent.client_data, authenticator_data=sent.authenticator_data, signature=sent.signature
    )
    credential = AuthenticationCredential(bytes_to_base64url(sent.credential_id), sent.credential_id, response)
    try:
        verified = verify_authentication_response(
            credential=credential,
            expected_challenge=challenge,
            expected_rp_id=site.host,
            expected_origin=site.origin,
            credential_public_key=public_key,
            # 0 disables the library's check of the counter. The library makes this check before that of the signature,
            # so that even a response with an invalid signature could make a passkey look copied.
            credential_current_sign_count=0,
            require_user_verification=True,
        )
    # The library and its parsers raise errors of many types.
    except Exception as error:
        raise InvalidPasskeyError(str(error)) from error
    return verified.new_sign_count
