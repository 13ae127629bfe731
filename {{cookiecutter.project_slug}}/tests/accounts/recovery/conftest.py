from collections.abc import Iterator

import pytest

from app.core.config.settings import Settings
from app.core.db.session import Database
from tests.support.databases import make_settings
from tests.support.mail import MailServer, run_mail_server
from tests.support.recovery import Postman


@pytest.fixture
def mail() -> Iterator[MailServer]:
    with run_mail_server() as mail:
        yield mail


@pytest.fixture
def settings(migrated_url: str, mail: MailServer) -> Settings:
    return make_settings(migrated_url, **mail.settings)


@pytest.fixture
def postman(mail: MailServer, settings: Settings, database: Database) -> Postman:
    return Postman(mail, settings, database)
