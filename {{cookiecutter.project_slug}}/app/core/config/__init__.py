from app.core.config.base import (
    MAX_LIFETIME_SECONDS as MAX_LIFETIME_SECONDS,
    Count as Count,
    Environment as Environment,
    FeatureSettings as FeatureSettings,
    Url as Url,
    Wait as Wait,
    read_env_file as read_env_file,
)
from app.core.config.load import (
    EXIT_CANNOT_START as EXIT_CANNOT_START,
    ConfigurationError as ConfigurationError,
    env_names as env_names,
    load_settings as load_settings,
    load_settings_or_exit as load_settings_or_exit,
)
from app.core.config.server import ServerSettings as ServerSettings
from app.core.config.settings import Settings as Settings
