from app.core.config.settings import Settings
from app.core.errors import UnavailableError
from app.core.storage.folder import FolderStore
from app.core.storage.objects import ObjectStore


def create_store(settings: Settings) -> ObjectStore | None:
    """Return the configured store, or None if there is neither a folder nor a bucket."""
    if settings.storage_s3_bucket is not None:
        # Imported lazily: only a bucket needs the S3 client.
        from app.core.storage.s3 import S3Store

        return S3Store(settings)
    return None if settings.files_folder is None else FolderStore(settings.files_folder)


def require_store(store: ObjectStore | None) -> ObjectStore:
    if store is None:
        raise UnavailableError("No storage for files is configured.", code="storage-not-configured")
    return store
