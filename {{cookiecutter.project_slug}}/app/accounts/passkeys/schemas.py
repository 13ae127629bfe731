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
    """What `navigator.credentials.create` has returned, as JSON; what else a browser tells is ignored."""

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
    """With recovery codes where it is the first second factor of the account; they are shown this once."""

    passkey: PasskeyRead
    recovery_codes: list[str]
