"""Fetching a file by its URL, once: the next run finds it in the cache."""

import hashlib
import http.client
import os
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from data_tools.console import Progress
from data_tools.errors import InputError
from data_tools.files import replacing

TIMEOUT = 60.0  # seconds without a byte
CHUNK = 1 << 20


def cache_folder() -> Path:
    """`PIXELS_TO_RECALL_CACHE`, else `pixels-to-recall` in the user's cache folder."""
    named = os.environ.get("PIXELS_TO_RECALL_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pixels-to-recall"


def download(url: str) -> Path:
    """The file behind an http or https URL, from the cache where it is there.

    Raises:
        InputError: it is not in the cache and cannot be fetched whole.
    """
    name = Path(urllib.parse.urlsplit(url).path).name or "file"
    path = cache_folder() / hashlib.sha256(url.encode()).hexdigest()[:16] / name
    if path.is_file():
        return path
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response, replacing(path) as temporary:
            _copy(response, temporary)
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise InputError(
            f"{url}: could not be fetched ({reason}); fetch it where there is a network and give its path"
        ) from None
    return path


def _copy(response: http.client.HTTPResponse, path: Path) -> None:
    announced = int(response.headers.get("Content-Length") or 0)
    received = 0
    with path.open("wb") as file, Progress("fetch weights", max(announced >> 20, 1), "MB") as bar:
        while chunk := response.read(CHUNK):
            received += file.write(chunk)
            bar.advance()
    if announced and received != announced:
        raise OSError(f"{received} of {announced} bytes arrived")
