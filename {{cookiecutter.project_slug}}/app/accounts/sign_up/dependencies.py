from app.core.dependencies import ClientInfoDep, GuessThrottleDep, SettingsDep
from app.core.errors import ForbiddenError
from app.core.security.throttling import count_origin


async def require_open_registration(settings: SettingsDep) -> None:
    if not settings.registration_open:
        raise ForbiddenError("Sign-up is closed.")


async def limit_sign_ups(settings: SettingsDep, throttle: GuessThrottleDep, client: ClientInfoDep) -> None:
    await throttle.count(*count_origin("sign-up from address", client.ip_address, settings))
