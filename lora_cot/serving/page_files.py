"""The page's own files: read once, and reachable without a key.

A browser cannot send a key with the address that a user types. These files are the same for everybody and hold nothing of
the server; what the page then asks of the API carries the key. No name in a request reaches the disk.
"""

from __future__ import annotations

import mimetypes
from pathlib import Path

from fastapi import FastAPI, Response

PAGE = Path(__file__).with_name("page")
SECURITY = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def page_routes(app: FastAPI, folder: Path) -> list[str]:
    """Add the page's files, its index at `/`; returns their paths. None if there is no index."""
    if not (folder / "index.html").is_file():
        return []
    paths = []
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        name = file.relative_to(folder).as_posix()
        path = "/" if name == "index.html" else f"/{name}"
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        _serve(app, path, Response(file.read_bytes(), media_type=kind, headers=SECURITY))
        paths.append(path)
    return paths


def _serve(app: FastAPI, path: str, response: Response) -> None:
    @app.get(path, response_model=None, include_in_schema=False)
    async def file() -> Response:
        return response
