"""Programs that run in a deployed project and store a file, as a feature would, or read it."""

_FRAME = """
import asyncio
import sys
from uuid import UUID

from sqlalchemy import select

from app.accounts.models import User
from app.core.config.load import load_settings
from app.core.db.session import open_database
from app.core.storage.store import create_store
from app.features import SETTINGS
from app.files import service

settings = load_settings(SETTINGS)
store = create_store(settings)


async def give(content):
    yield content.encode()


async def main():
    async with open_database(settings) as database:
        BODY


asyncio.run(main())
"""

# Takes the content as its argument and prints the file's id.
STORE_FILE = _FRAME.replace(
    "BODY",
    """
        async with database.read() as session:
            owner_id = (await session.execute(select(User.id).limit(1))).scalar_one()
        saved = await service.save(
            database, store, owner_id, filename="a.txt", media_type="text/plain", chunks=give(sys.argv[1])
        )
        async with database.write() as session:
            await service.keep(session, saved)
        print(saved.id)
    """.strip(),
)
# Takes the id as its argument and prints the content.
READ_FILE = _FRAME.replace(
    "BODY",
    """
        async with database.read() as session:
            file = await service.get_file(session, UUID(sys.argv[1]))
        print(b"".join([chunk async for chunk in await store.open(file.id)]).decode())
    """.strip(),
)
