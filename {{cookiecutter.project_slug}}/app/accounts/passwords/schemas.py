from app.accounts.second_factor.schemas import PasswordConfirmation
from app.core.schemas import NewPassword


class PasswordChange(PasswordConfirmation):
    new_password: NewPassword
