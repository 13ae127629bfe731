from fastapi import Depends

from app.core.dependencies import ClientInfoDep, GuessThrottleDep, SettingsDep
from app.core.security.throttling import count_origin


async def take_code_attempt(settings: SettingsDep, throttle: GuessThrottleDep, client: ClientInfoDep) -> None:
    await throttle.count(*count_origin("code from address", client.ip_address, settings))


limit_codes = Depends(take_code_attempt)
