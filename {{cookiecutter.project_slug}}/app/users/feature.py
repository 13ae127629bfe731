from app.core.features import Feature
from app.core.toolbox import Toolbox
from app.users import emails, one_time_tokens, service
from app.users.callers import open_callers
from app.users.router import router
from app.users.schemas import UserCreate

DEMO_EMAIL = "demo@example.com"
DEMO_PASSWORD = "demo-password"  # noqa: S105  # in the README; only a reset makes this account, never in production


async def load_sample_data(tools: Toolbox) -> None:
    data = UserCreate.model_validate({"email": DEMO_EMAIL, "password": DEMO_PASSWORD, "name": "Demo"})
    await service.create_user(tools, data, is_admin=True)


feature = Feature(
    api=router,
    lifespan=open_callers,
    purge=one_time_tokens.purge_tokens,
    load_sample_data=load_sample_data,
    emails=emails.RENDERERS,
    commands="app.users.commands:commands",
)
