"""Files that are read with one clear complaint and written whole or not at all."""

import json
import os
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from data_tools.errors import InputError


def read_text(path: Path) -> str:
    """The UTF-8 text of `path`; `InputError` where there is none."""
    try:
        return path.read_text(encoding="utf-8-sig")  # a byte-order mark is no text
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {_reason(error)}") from None


def read_json(path: Path, unique_keys: bool = False) -> Any:
    """The JSON document in `path`; `InputError` names the line where it is malformed.

    With `unique_keys` a key that stands twice in an object is an error too; else the last one counts.
    """
    try:
        return json.loads(read_text(path), object_pairs_hook=_unique_keys if unique_keys else None)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {error}") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counts.items() if count > 1)
        raise ValueError(f"the key {twice!r} is there twice")
    return document


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else (error.strerror or str(error))


def is_inside(name: str) -> bool:
    """Whether a path that somebody wrote into a file is relative and stays in the folder that it starts from.

    >>> is_inside("train2014/1.jpg"), is_inside("../1.jpg"), is_inside("/etc/passwd"), is_inside("")
    (True, False, False, False)
    """
    path = PurePosixPath(name)
    return path.parts != () and not path.is_absolute() and ".." not in path.parts


@contextmanager
def replacing(path: Path, temporary: Path | None = None) -> Iterator[Path]:
    """A temporary path to write to; on success it is flushed to the disk and renamed to `path`.

    A crash at any moment leaves either the old file or the new one, never half of it. The temporary lies
    beside `path` unless it is given; it must be on the same file system. An `OSError` on the way (a full
    disk, say) becomes an `InputError` that names `path`.
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
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # it may never have been made, and the first error is the one to tell
            temporary.unlink()


def replace_file(path: Path, content: bytes) -> None:
    """Write `content` to `path`, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def flush_to_disk(path: Path) -> None:
    """Wait until what was written to a file, or renamed in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
