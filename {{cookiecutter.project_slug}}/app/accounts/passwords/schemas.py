from pydantic import SecretStr

from app.core.schemas import Input, NewPassword


class PasswordConfirmation(Input):
    current_password: SecretStr


class PasswordChange(Input):
    current_password: SecretStr
    new_password: NewPassword
