"""Conversion of e-mail addresses and URLs to ASCII (Punycode), as mail servers, headers and links require."""

from typing import Annotated

from email_validator import validate_email
from pydantic import AfterValidator, EmailStr, Field, HttpUrl, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from app.core.hosts import check_url

_URL = TypeAdapter(HttpUrl)


def refuse_encoded_words(address: str) -> str:
    # Mail software decodes `=?utf-8?q?ada?=@example.com` (RFC 2047) and sends the message to ada@example.com.
    if "=?" in address:
        raise PydanticCustomError("encoded_word", "must not contain =? because mail software would decode it")
    return address


MailAddress = Annotated[EmailStr, AfterValidator(refuse_encoded_words)]


def to_ascii_address(address: str) -> str:
    """Encode the domain of an address in Punycode; raises ValueError for an invalid address.

    A local part with non-ASCII characters is unchanged and needs a mail server with SMTPUTF8.
    """
    parts = validate_email(address, check_deliverability=False, test_environment=True)
    return f"{parts.local_part}@{parts.ascii_domain}"


def to_ascii_url(url: str) -> str:
    """Encode the host (Punycode) and the path (percent-encoding), as browsers do; raises ValueError if invalid."""
    try:
        return str(_URL.validate_python(url))
    except ValidationError:
        raise ValueError("must be a URL such as https://api.example.com") from None


def require_ascii(address: str) -> str:
    if not address.isascii():
        raise ValueError("must have ASCII characters before the @: many mail servers refuse others")
    return address


SenderAddress = Annotated[MailAddress, AfterValidator(to_ascii_address), AfterValidator(require_ascii)]
WebUrl = Annotated[
    str, AfterValidator(check_url), AfterValidator(to_ascii_url), Field(json_schema_extra={"format": "uri"})
]
