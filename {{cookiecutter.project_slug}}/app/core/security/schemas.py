import unicodedata
from typing import Annotated

from pydantic import AfterValidator, SecretStr
from pydantic_core import PydanticCustomError

from app.core.security.password_strength import MAX_PASSWORD_LENGTH, MIN_PASSWORD_LENGTH, normalize_password


def _check_password(value: SecretStr) -> SecretStr:
    """Validate length and characters; `refuse_weak_password` needs the account and runs later."""
    password = normalize_password(value.get_secret_value())
    # JSON can contain lone surrogates, which UTF-8 cannot encode.
    if any(unicodedata.category(character) == "Cs" for character in password):
        raise PydanticCustomError("surrogates", "must be valid Unicode, without lone surrogates")
    if not MIN_PASSWORD_LENGTH <= len(password) <= MAX_PASSWORD_LENGTH:
        raise PydanticCustomError(
            "password_length",
            "must have {min_length} to {max_length} characters",
            {"min_length": MIN_PASSWORD_LENGTH, "max_length": MAX_PASSWORD_LENGTH},
        )
    return value


NewPassword = Annotated[SecretStr, AfterValidator(_check_password)]
