import asyncio

from fastapi import APIRouter, Response

from app.core.observability.metrics import render_metrics

router = APIRouter(include_in_schema=False)


@router.get("/metrics")
async def read_metrics() -> Response:
    # In a thread, because merging the files of many workers takes a while.
    return Response(await asyncio.to_thread(render_metrics), media_type="text/plain; version=0.0.4; charset=utf-8")
