from app.core.feature import Feature
from app.outbox import service

feature = Feature(purge=service.purge_failed, commands="app.outbox.commands:commands")
