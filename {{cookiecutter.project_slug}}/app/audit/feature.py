from app.audit.router import router
from app.core.audit import purge_events
from app.core.features import Feature

feature = Feature(api=router, purge=purge_events)
