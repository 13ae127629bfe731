from app.core.feature import Feature
from app.health.router import metrics_router, router

feature = Feature(root=(router, metrics_router))
