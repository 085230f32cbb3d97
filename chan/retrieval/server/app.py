"""The page of an index as a web application: static files, thumbnails by id, and a JSON interface.

GET /                                   the page
GET /api/search?q=TEXT&k=N&weights=1,0  images for a sentence: a document of `chan.retrieval.documents`
GET /api/like?id=ID&region=N&k=N        images that hold such a region
GET /thumbnail?id=ID                    a JPEG

Errors are `{"error": "one line"}` with status 400 (wrong use), 401 (no token), 404, 429 (too many requests) or 503
(too many waiting).
"""

import threading
from collections.abc import Callable
from functools import lru_cache
from importlib.resources import as_file, files
from typing import Any
from urllib.parse import urlencode

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from chan.retrieval import documents
from chan.retrieval.search import Hit, IndexSearch
from chan.retrieval.server.guard import Guard, error_response
from chan.retrieval.thumbnails import thumbnail
from data_tools.errors import InputError

MAX_QUERY = 500  # characters
MAX_RESULTS = 100
RESULTS = 24
MAX_WAITING = 64  # searches; they are computed one after another
THUMBNAILS = 2048  # kept in memory, some 30 kB each
LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")


def make_app(searched: IndexSearch, token: str | None = None) -> Starlette:
    """The application for an index.

    Args:
        searched: the index.
        token: what a client must show, in the address or as a cookie; None for a server on loopback, which then
            answers only requests for a name of this machine.
    """
    pages = _Pages(searched)
    with as_file(files("chan.retrieval.server") / "static") as static:
        routes = [
            Route("/", pages.page),
            Route("/api/search", pages.search),
            Route("/api/like", pages.like),
            Route("/thumbnail", pages.thumbnail),
            Mount("/static", StaticFiles(directory=static)),
        ]
    middleware = [Middleware(Guard, token=token)]
    if token is None:  # a page elsewhere cannot reach the server under a name that it made point here
        middleware.insert(0, Middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK)))
    handlers: dict[Any, Callable] = {InputError: _explain, 404: _not_found, 405: _not_found}
    return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)


class _Pages:
    """What the routes answer."""

    def __init__(self, searched: IndexSearch) -> None:
        self.searched = searched
        self._computing, self._waiting = threading.Lock(), 0
        self._thumbnail = lru_cache(THUMBNAILS)(lambda position: thumbnail(searched.index.file(position)))

    async def page(self, request: Request) -> Response:
        """The page."""
        return Response(
            (files("chan.retrieval.server") / "static" / "index.html").read_bytes(), media_type="text/html"
        )

    async def search(self, request: Request) -> Response:
        """Images for a sentence."""
        text, k = request.query_params.get("q", ""), _count(request)
        if len(text) > MAX_QUERY:
            raise InputError(f"a query has at most {MAX_QUERY} characters, this one has {len(text)}")
        weights = request.query_params.get("weights")

        def compute() -> dict[str, Any]:
            query = self.searched.query(text)
            if weights is not None:
                query = query.weighted(_integers("weights", weights))
            return documents.of_sentence(self.searched, query, self.searched.search(query, k), _address)

        return await self._compute(compute)

    async def like(self, request: Request) -> Response:
        """Images that hold a region like one of an image."""
        image_id, k = request.query_params.get("id", ""), _count(request)
        [region] = _integers("region", request.query_params.get("region", "0"))[:1]

        def compute() -> dict[str, Any]:
            found = self.searched.like(image_id, region, k)
            return documents.of_region(self.searched, image_id, region, found, _address)

        return await self._compute(compute)

    async def thumbnail(self, request: Request) -> Response:
        """A small picture of an image."""
        position = self.searched.index.positions.get(request.query_params.get("id", ""))
        jpeg = None if position is None else await run_in_threadpool(self._thumbnail, position)
        if jpeg is None:
            return error_response("no such picture", 404)
        return Response(jpeg, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    async def _compute(self, work: Callable[[], dict[str, Any]]) -> Response:
        """Do some work in a thread, after that of the requests before."""
        if self._waiting >= MAX_WAITING:
            return error_response("the server is busy; fix: ask again in a few seconds", 503)

        def in_turn() -> dict[str, Any]:
            with self._computing:
                return work()

        self._waiting += 1
        try:
            return JSONResponse(await run_in_threadpool(in_turn))
        finally:
            self._waiting -= 1


def _address(hit: Hit) -> str | None:
    return None if hit.file is None else "thumbnail?" + urlencode({"id": hit.image_id})


def _count(request: Request) -> int:
    [k] = _integers("k", request.query_params.get("k", str(RESULTS)))[:1]
    if not 1 <= k <= MAX_RESULTS:
        raise InputError(f"k: expected 1 to {MAX_RESULTS}, found {k}")
    return k


def _integers(name: str, text: str) -> list[int]:
    parts = text.split(",")
    if len(parts) > MAX_QUERY or not all(part.isascii() and part.isdecimal() and len(part) < 10 for part in parts):
        raise InputError(f"{name}: expected whole numbers, found {text[:40]!r}")
    return [int(part) for part in parts]


async def _explain(request: Request, error: Exception) -> Response:
    return error_response(str(error), 400)


async def _not_found(request: Request, error: Exception) -> Response:
    return error_response("no such address", 404)
