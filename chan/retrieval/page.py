"""Results as one HTML file without a server: the page of `chan serve` with its style, script and thumbnails."""

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from chan.retrieval import documents
from chan.retrieval.search import Hit, IndexSearch, Query, Results
from chan.retrieval.thumbnails import thumbnail
from data_tools.files import replace_file

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
    policy = (
        f"default-src 'none'; img-src data:; style-src 'sha256-{_digest(style)}'; "
        f"script-src 'sha256-{_digest(script)}'"
    )
    frozen = json.dumps(found, ensure_ascii=False).replace("<", "\\u003c")  # no text ends the element
    page = (STATIC / "index.html").read_text("utf-8")
    head = f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n<style>{style}</style>'
    page = page.replace('<link rel="stylesheet" href="static/style.css">', head)
    page = page.replace('<script type="module" src="static/page.js"></script>\n', "")
    body = (
        f'<script type="application/json" id="frozen">{frozen}</script>\n<script type="module">{script}</script>'
    )
    replace_file(path, page.replace("</body>", f"{body}\n</body>").encode())


def _data_address(hit: Hit) -> str | None:
    """The thumbnail of a hit as a `data:` address; None where its file cannot be read."""
    jpeg = thumbnail(hit.file)
    return None if jpeg is None else "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
