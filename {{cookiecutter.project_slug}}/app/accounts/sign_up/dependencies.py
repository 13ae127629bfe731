from app.core.exceptions import ForbiddenError
from app.core.requests import SettingsDep


async def require_open_registration(settings: SettingsDep) -> None:
    if not settings.registration_open:
        raise ForbiddenError("Sign-up is closed.", code="sign-up-closed")
