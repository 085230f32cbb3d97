"""Reading text and JSON with one-line errors, and writing files completely or not at all."""

import json
import os
import socket
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from data_tools.errors import InputError, one_line


def read_text(path: Path) -> str:
    """The UTF-8 text of a file, without a byte-order mark.

    Raises:
        InputError: the file is missing, cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text") from None
    except OSError as error:
        raise InputError(f"{path}: {one_line(error)}") from None


def read_json(path: Path, unique_keys: bool = False) -> Any:
    """The JSON document in a file.

    Args:
        path: the file, UTF-8.
        unique_keys: whether a key that an object repeats is an error; otherwise its last value counts.

    Raises:
        InputError: the file is missing or not JSON; the message gives the line.
    """
    try:
        return json.loads(read_text(path), object_pairs_hook=_unique_keys if unique_keys else None)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {error}") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        repeated = next(name for name, count in counts.items() if count > 1)
        raise ValueError(f"the key {repeated!r} is repeated")
    return document


def is_inside(name: str) -> bool:
    """Whether a path, as read from a file, is relative and stays inside the folder that it is relative to.

    >>> is_inside("train2014/1.jpg"), is_inside("../1.jpg"), is_inside("/etc/passwd"), is_inside("")
    (True, False, False, False)
    """
    path = PurePosixPath(name)
    return path.parts != () and not path.is_absolute() and ".." not in path.parts


def check_writable(path: Path) -> None:
    """Check, before the work whose result it will hold, that the file `path` can be written.

    A file is created and removed again in its folder, or in the nearest folder above it that exists; `path` and
    folders that do not exist are not created.

    Raises:
        InputError: `path` is a folder, or no file can be created there (no permission, read-only file system).
    """
    if path.is_dir():
        raise InputError(f"{path}: expected a file to write, this is a folder")
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe-"):
            pass
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {folder}: {one_line(error)}") from None


@contextmanager
def replacing(path: Path, temporary: Path | None = None) -> Iterator[Path]:
    """A temporary path to write to; on success it is flushed to the disk and renamed to `path`.

    After a crash the file is either the old one or the new one, never a part of it.

    Args:
        path: the file to create or replace; its folder is created if it does not exist.
        temporary: where to write first, on the same file system; None is a hidden file beside `path`.

    Raises:
        InputError: an `OSError` occurred while writing, for instance because the disk is full.
    """
    if temporary is None:
        temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        flush_to_disk(temporary)
        temporary.replace(path)
        flush_to_disk(path.parent)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {one_line(error)}") from error
    finally:
        with suppress(OSError):  # it may not exist, and the first error is the one to report
            temporary.unlink()


def replace_file(path: Path, content: bytes) -> None:
    """Write `content` to `path`, completely or not at all; `InputError` if that fails."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def flush_to_disk(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
