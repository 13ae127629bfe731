from app.core.exceptions import ForbiddenError
from app.core.requests import OriginDep, SettingsDep
from app.core.throttling import AttemptCounter, GuessThrottleDep, network_of


async def require_open_registration(settings: SettingsDep) -> None:
    if not settings.registration_open:
        raise ForbiddenError("Sign-up is closed.")


async def limit_sign_ups(settings: SettingsDep, throttle: GuessThrottleDep, origin: OriginDep) -> None:
    counter = AttemptCounter("sign-up from address", network_of(origin.address), settings.throttle_address_attempts)
    await throttle.count(counter)
