from app.core.dependencies import SettingsDep
from app.core.errors import ForbiddenError


async def require_open_registration(settings: SettingsDep) -> None:
    if not settings.registration_open:
        raise ForbiddenError("Sign-up is closed.", code="sign-up-closed")
