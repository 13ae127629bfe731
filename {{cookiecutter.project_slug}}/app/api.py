from app.audit.feature import feature as audit
from app.auth.feature import feature as auth
from app.core.config import FeatureSettings
from app.core.features import Feature, settings_of
from app.files.feature import feature as files
from app.health.feature import feature as health
from app.outbox.feature import feature as outbox
from app.todos.feature import feature as todos
from app.users.feature import feature as users
from app.weather.feature import feature as weather  # only: weather_example
from app.web.feature import feature as web  # only: web_pages

# Sample data is loaded in this order.
FEATURES: tuple[Feature, ...] = (
    health,
    outbox,
    auth,
    users,
    files,
    audit,
    todos,
    weather,  # only: weather_example
    web,  # only: web_pages
)
SETTINGS: tuple[type[FeatureSettings], ...] = settings_of(FEATURES)
