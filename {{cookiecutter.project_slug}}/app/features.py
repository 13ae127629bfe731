from app.accounts.feature import feature as accounts
from app.audit.feature import feature as audit
from app.core.config.base import FeatureSettings
from app.core.feature import Feature, settings_of
from app.files.feature import feature as files
from app.health.feature import feature as health
from app.outbox.feature import feature as outbox
from app.projects.feature import feature as projects
from app.todos.feature import feature as todos
from app.weather.feature import feature as weather  # only: weather_example
from app.web.feature import feature as web  # only: web_pages

# Sample data is loaded in this order.
FEATURES: tuple[Feature, ...] = (
    health,
    outbox,
    accounts,
    files,
    audit,
    todos,
    projects,
    weather,  # only: weather_example
    web,  # only: web_pages
)
SETTINGS: tuple[type[FeatureSettings], ...] = settings_of(FEATURES)
