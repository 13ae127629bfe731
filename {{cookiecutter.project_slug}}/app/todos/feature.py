from app.accounts.feature import DEMO_EMAIL
from app.accounts.queries import get_user_by_email
from app.core.context import Context
from app.core.feature import Feature
from app.todos import service
from app.todos.router import router
from app.todos.schemas import TodoCreate

SAMPLES = (
    TodoCreate(title="Read the README", completed=True),
    TodoCreate(title="Try the API at /docs"),
    TodoCreate(
        title="Copy app/todos for a new feature", description="Then delete app/todos if the service needs no todos."
    ),
)


async def load_sample_data(ctx: Context) -> None:
    owner = await get_user_by_email(ctx.session, DEMO_EMAIL)
    for sample in SAMPLES:
        await service.create_todo(ctx.session, owner.id, sample)


feature = Feature(api=router, load_sample_data=load_sample_data)
