from urllib.parse import quote

import structlog
from fastapi.responses import StreamingResponse

from app.core.errors import UnavailableError
from app.core.storage.objects import ObjectStore
from app.files.models import FileRecord

logger = structlog.get_logger(__name__)


async def download(store: ObjectStore, file: FileRecord) -> StreamingResponse:
    """Respond with a file as a download, which browsers never show or run as a page of this site.

    The content is sent after the route has returned and its session is closed. Raises UnavailableError if the content
    is missing, for example while a backup is being restored.
    """
    try:
        chunks = await store.open(file.id)
    except FileNotFoundError as error:
        logger.exception("the content of a file is missing", file_id=str(file.id))
        raise UnavailableError(
            "The file's content is unavailable. Try again in a moment.", code="file-content-unavailable"
        ) from error
    return StreamingResponse(
        chunks,
        headers={
            "Content-Disposition": f"attachment; filename*=UTF-8''{quote(file.filename, safe='')}",
            "Content-Length": str(file.size),
            "Content-Type": file.media_type,
            "X-Content-Type-Options": "nosniff",
        },
    )
