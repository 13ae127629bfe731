from app.core.exceptions import ForbiddenError
from app.core.requests import OriginDep, SettingsDep
from app.core.throttling import GuessThrottleDep, count_origin


async def require_open_registration(settings: SettingsDep) -> None:
    if not settings.registration_open:
        raise ForbiddenError("Sign-up is closed.")


async def limit_sign_ups(settings: SettingsDep, throttle: GuessThrottleDep, origin: OriginDep) -> None:
    await throttle.count(*count_origin("sign-up from address", origin.address, settings))
