"""Fetching a file by its URL, once: the next run finds it in the cache."""

import hashlib
import http.client
import os
import time
import urllib.parse
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

from data_tools.console import Progress
from data_tools.errors import InputError, one_line
from data_tools.files import replacing
from data_tools.weights.caffe_files import is_caffe_file, is_whole_caffe_file

TIMEOUT = 60.0  # seconds without a byte
CHUNK = 1 << 20
MAX_BYTES, MAX_SECONDS = 16 << 30, 6 * 3600.0  # of a weight file, and of fetching it


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
    with replacing(path) as temporary:
        try:
            with _OPENER.open(url, timeout=TIMEOUT) as response:
                _copy(response, temporary)
        except _NotWrittenError as error:
            raise error.__cause__ or error from None  # of our disk, which `replacing` reports
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", None)
            cause = reason if isinstance(reason, Exception) else error
            raise InputError(
                f"{url}: could not be fetched ({one_line(cause)}); fix: fetch it where there is a network and "
                "give its path"
            ) from None
    return path


class _NotWrittenError(Exception):
    pass


class _HttpOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirections to http and https, not to other protocols, and never from https to http."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """See `HTTPRedirectHandler`."""
        scheme = urllib.parse.urlsplit(newurl).scheme
        if scheme != "https" and scheme != urllib.parse.urlsplit(req.full_url).scheme:
            raise ValueError(f"redirected to {newurl[:100]}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_OPENER = urllib.request.OpenerDirector()
for _handler in (
    *(urllib.request.ProxyHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler, _HttpOnly),
    *(urllib.request.HTTPDefaultErrorHandler, urllib.request.HTTPErrorProcessor),
):
    _OPENER.add_handler(_handler())


def _copy(response: http.client.HTTPResponse, path: Path) -> None:
    """Write the body of a response, which must be whole, of bounded size and time, and no web page."""
    announced = response.headers.get("Content-Length")
    expected = int(announced) if announced else None
    if expected is not None and not 0 < expected <= MAX_BYTES:
        raise ValueError(f"the server announces {expected} bytes")
    received, end = 0, time.monotonic() + MAX_SECONDS
    with path.open("wb") as file, Progress("fetch weights", max((expected or 0) >> 20, 1), "MB") as bar:
        while chunk := response.read(CHUNK):
            if not received and chunk.lstrip()[:1] == b"<":
                raise ValueError("the server sent a web page, no weights: a login page or an error")
            received += len(chunk)
            if received > MAX_BYTES or time.monotonic() > end:
                raise ValueError(f"{received} bytes are too many or took too long")
            try:
                file.write(chunk)
            except OSError as error:
                raise _NotWrittenError from error
            bar.advance()
    if not received or (expected is not None and received != expected):
        raise ValueError(f"{received} of {expected or 'any'} bytes arrived")
    if expected is None:
        _check_whole(path)


def _check_whole(path: Path) -> None:
    """A body without a length may be cut: an archive is complete with its directory, a pickle with its end.

    Caffe's files have no end; one is complete if its last layer is.
    """
    if is_caffe_file(path):
        if not is_whole_caffe_file(path):
            raise ValueError("the server did not say how long the file is, and its last layer is cut")
        return
    with path.open("rb") as file:
        start = file.read(4)
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
    if not (zipfile.is_zipfile(path) if start == b"PK\x03\x04" else last == b"."):
        raise ValueError("the server did not say how long the file is, and it seems to be cut")
