from app.audit.router import router
from app.core.audit.log import purge_events
from app.core.feature import Feature

feature = Feature(api=router, purge=purge_events)
