from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import BaseModel, BeforeValidator, Field, StringConstraints

from app.accounts.second_factor.passkeys import Part, read_text
from app.core.http.schemas import NonEmptyLine, RequestModel, ResponseModel

Transport = Annotated[str, StringConstraints(max_length=20)]


class RegistrationResponse(BaseModel):
    client_data: Annotated[Part, Field(alias="clientDataJSON")]
    attestation: Annotated[Part, Field(alias="attestationObject")]
    transports: Annotated[list[Transport], Field(max_length=10)] = []


class PasskeyRegistration(BaseModel):
    """The result of `navigator.credentials.create` as JSON; other fields are ignored."""

    id: Part
    response: RegistrationResponse


class PasskeyCreate(RequestModel):
    name: NonEmptyLine
    credential: Annotated[PasskeyRegistration, BeforeValidator(read_text)]


class PasskeyRead(ResponseModel):
    id: UUID
    name: str
    created_at: datetime
    last_used_at: datetime | None


class PasskeyCreated(BaseModel):
    """A new passkey, with recovery codes if it is the account's first second factor; they are shown only once."""

    passkey: PasskeyRead
    recovery_codes: list[str]
