from urllib.parse import quote

from fastapi.responses import StreamingResponse

from app.core.storage import ObjectStore
from app.files.models import FileRecord


async def download(store: ObjectStore, file: FileRecord) -> StreamingResponse:
    """Answer with a file's content, for saving: a browser never shows or runs it as a page of this site.

    The content is sent after the route has returned, when the request's session is closed.
    """
    chunks = await store.open(file.id)
    return StreamingResponse(
        chunks,
        headers={
            "Content-Disposition": f"attachment; filename*=UTF-8''{quote(file.filename, safe='')}",
            "Content-Length": str(file.size),
            "Content-Type": file.media_type,
            "X-Content-Type-Options": "nosniff",
        },
    )
