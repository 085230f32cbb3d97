"""Results as one HTML file without a server: the page of `chan serve` with its style, script and thumbnails."""

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from chan.retrieval import documents
from chan.retrieval.search import Hit, IndexSearch, Query, Results
from chan.retrieval.thumbnails import thumbnail
from data_tools.files import replace_file
from data_tools.images.pages import content_policy, jpeg_address

STATIC = files("chan.retrieval.server") / "static"


def save_sentences(
    searched: IndexSearch, queries: Sequence[Query], results: Sequence[Results], path: Path
) -> None:
    """Write the results of sentences as a page; `InputError` if it cannot be written."""
    pairs = zip(queries, results, strict=True)
    _save([documents.of_sentence(searched, *pair, _data_address) for pair in pairs], path)


def save_like(searched: IndexSearch, image_id: str, region: int, results: Results, path: Path) -> None:
    """Write the images that hold a region like one of an image as a page; `InputError` if that fails."""
    _save([documents.of_region(searched, image_id, region, results, _data_address)], path)


def _save(found: list[dict[str, Any]], path: Path) -> None:
    """Write documents of results; the page may run its own script only, and request nothing."""
    style, script = ((STATIC / name).read_text("utf-8") for name in ("style.css", "page.js"))
    frozen = json.dumps(found, ensure_ascii=False).replace("<", "\\u003c")  # no text ends the element
    page = (STATIC / "index.html").read_text("utf-8")
    head = f"{content_policy(style, script)}\n<style>{style}</style>"
    page = page.replace('<link rel="stylesheet" href="static/style.css">', head)
    page = page.replace('<script type="module" src="static/page.js"></script>\n', "")
    body = (
        f'<script type="application/json" id="frozen">{frozen}</script>\n<script type="module">{script}</script>'
    )
    replace_file(path, page.replace("</body>", f"{body}\n</body>").encode())


def _data_address(hit: Hit) -> str | None:
    """The thumbnail of a hit as a `data:` address; None where its file cannot be read."""
    jpeg = thumbnail(hit.file)
    return None if jpeg is None else jpeg_address(jpeg)
