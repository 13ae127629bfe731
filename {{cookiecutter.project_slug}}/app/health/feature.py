from app.core.features import Feature
from app.health.router import router

feature = Feature(root=router)
