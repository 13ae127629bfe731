"""Functions that guess passwords, and the limits that the tests of the throttle set."""

import httpx2

from app.core.db.session import Database
from app.core.errors import TooManyRequestsError
from app.core.security.throttling import AttemptCounter, GuessThrottle
from tests.support.accounts import request_token

FREE = 3
FREE_OF_ADDRESS = 8
CHANGES = 13
ME = "/api/v1/users/me"
HOME, ELSEWHERE = "192.0.2.1", "198.51.100.7"
WRONG = "not the password at all"


async def guess(client: httpx2.AsyncClient, email: str, times: int = 1) -> list[int]:
    answers = [await request_token(client, username=email, password=WRONG) for _ in range(times)]
    return [answer.status_code for answer in answers]


async def take(throttle: GuessThrottle, database: Database, counter: AttemptCounter) -> TooManyRequestsError | None:
    async with database.read() as session:
        return await throttle.commit_and_take(session, counter)
