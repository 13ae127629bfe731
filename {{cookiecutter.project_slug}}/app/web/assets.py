"""Static files with a hash of their content in their names, so that browsers may cache them forever."""

import hashlib
import mimetypes
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends
from fastapi.responses import FileResponse

from app.core.errors import NotFoundError
from app.web.request import WebRequest

FOLDER = Path(__file__).with_name("static")
PREFIX = "/static"
CACHE_FOREVER = "public, max-age=31536000, immutable"
HASH_LENGTH = 16

router = APIRouter(prefix=PREFIX)


class Assets:
    def __init__(self, folder: Path = FOLDER) -> None:
        self._names = {file.name: _hashed_name(file) for file in sorted(folder.iterdir())}
        self._files = {name: folder / original for original, name in self._names.items()}

    def url(self, name: str) -> str:
        return f"{PREFIX}/{self._names[name]}"

    def list_files(self) -> Iterable[tuple[str, Path]]:
        return self._files.items()

    def find(self, name: str) -> Path:
        try:
            return self._files[name]
        except KeyError:
            raise NotFoundError("There is no such file.") from None


def _hashed_name(file: Path) -> str:
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:HASH_LENGTH]
    return f"{file.stem}.{digest}{file.suffix}"


def copy_assets(target: Path) -> None:
    """Copy the static files, under their hashed names, to a directory of the web server."""
    for name, file in Assets().list_files():
        shutil.copyfile(file, target / name)


async def get_asset(name: str, request: WebRequest) -> Path:
    return request.state["web"].assets.find(name)


AssetDep = Annotated[Path, Depends(get_asset)]


@router.get("/{name}")
async def show_asset(asset: AssetDep) -> FileResponse:
    media_type = mimetypes.guess_type(asset.name)[0]
    headers = {"Cache-Control": CACHE_FOREVER, "X-Content-Type-Options": "nosniff"}
    return FileResponse(asset, headers=headers, media_type=media_type)


if __name__ == "__main__":
    copy_assets(Path(sys.argv[1]))
