from collections.abc import AsyncIterator

import httpx2
import pytest
from fastapi import FastAPI

from app.core.config.settings import Settings
from tests.support.accounts import Account, create_account
from tests.support.clients import open_client
from tests.support.databases import make_settings
from tests.support.throttling import CHANGES, ELSEWHERE, FREE, FREE_OF_ADDRESS, HOME


@pytest.fixture
def settings(migrated_url: str) -> Settings:
    return make_settings(
        migrated_url,
        throttling=True,
        throttle_account_attempts=FREE,
        throttle_address_attempts=FREE_OF_ADDRESS,
        throttle_account_changes=CHANGES,
        throttle_max_delay_seconds=60,
    )


@pytest.fixture
async def home(app: FastAPI) -> AsyncIterator[httpx2.AsyncClient]:
    async with open_client(app, address=HOME) as client:
        yield client


@pytest.fixture
async def elsewhere(app: FastAPI) -> AsyncIterator[httpx2.AsyncClient]:
    async with open_client(app, address=ELSEWHERE) as client:
        yield client


@pytest.fixture
async def user(home: httpx2.AsyncClient) -> Account:
    """A user who has signed in from HOME."""
    return await create_account(home)
