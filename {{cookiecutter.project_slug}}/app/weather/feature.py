from app.core.feature import Feature
from app.weather.router import router
from app.weather.service import open_weather
from app.weather.settings import WeatherSettings

feature = Feature(api=router, settings=WeatherSettings, lifespan=open_weather)
