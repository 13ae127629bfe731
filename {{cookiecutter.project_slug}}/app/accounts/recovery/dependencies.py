from fastapi import Depends

from app.core.requests import OriginDep, SettingsDep
from app.core.throttling import GuessThrottleDep, count_origin


async def take_code_attempt(settings: SettingsDep, throttle: GuessThrottleDep, origin: OriginDep) -> None:
    await throttle.count(*count_origin("code from address", origin.address, settings))


limit_codes = Depends(take_code_attempt)
