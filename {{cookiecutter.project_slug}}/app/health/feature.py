from app.core.feature import Feature
from app.health import metrics
from app.health.router import router

feature = Feature(root=(router, metrics.router))
