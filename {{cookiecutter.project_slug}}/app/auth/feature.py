from app.auth import service
from app.auth.router import router
from app.core.features import Feature

feature = Feature(api=router, purge=service.purge, commands="app.auth.commands:commands")
