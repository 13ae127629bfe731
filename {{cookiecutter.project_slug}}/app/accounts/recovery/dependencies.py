from fastapi import Depends

from app.core.requests import OriginDep, SettingsDep
from app.core.throttling import AttemptCounter, GuessThrottleDep, network_of


async def take_code_attempt(settings: SettingsDep, throttle: GuessThrottleDep, origin: OriginDep) -> None:
    counter = AttemptCounter("code from address", network_of(origin.address), settings.throttle_address_attempts)
    await throttle.count(counter)


limit_codes = Depends(take_code_attempt)
