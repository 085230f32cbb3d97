"""Reading text and JSON with one-line errors, and writing files completely or not at all."""

import errno
import fcntl
import json
import os
import re
import shutil
import socket
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from data_tools.errors import InputError, UsageError, one_line

FULL = 1 << 16  # bytes: a disk with less left is full


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


def check_space(path: Path, needed: int) -> None:
    """Raise `InputError` unless the disk of the file `path`, which need not exist, has `needed` bytes left."""
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"{path}: no space left on the disk: needs {needed / 1e6:.1f} MB, has {free / 1e6:.1f} MB; "
            "fix: free space and run the same command again"
        )


def reserve(path: Path, size: int) -> None:
    """Take the disk space of the first `size` bytes of a file, so that writing them cannot fail for want of it.

    Raises:
        InputError: there is not so much left.
    """
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.posix_fallocate(descriptor, 0, max(size, 1))
    except OSError as error:
        if error.errno == errno.ENOSPC:
            check_space(path, size)
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):  # a file system that cannot
            raise
    finally:
        os.close(descriptor)


def is_full(folder: Path) -> bool:
    """Whether the disk of a folder has no space left, which libraries report in many ways."""
    return shutil.disk_usage(folder).free < FULL


@contextmanager
def claimed(place: Path, lock: Path, shared: bool = False) -> Iterator[None]:
    """Work that no other process may do at the same time; the claim ends with the process, however that ends.

    Args:
        place: what is claimed, for messages.
        lock: a file that is made for it, and removed again by the last who has the claim.
        shared: others may share the claim, unless one of them has it alone.

    Raises:
        InputError: another process has the claim; the message names it. Or the file cannot be made.
    """
    made = not lock.parent.exists()
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _locked(lock, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    except OSError as error:
        raise InputError(f"{place}: cannot be written: {one_line(error)}") from None
    if descriptor is None:
        with suppress(OSError):
            raise InputError(f"{place}: {lock.read_text() or 'another process'} is working here; fix: wait for it")
        raise InputError(f"{place}: another process is working here; fix: wait until it has ended")
    try:
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        with suppress(OSError):
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails where others still share the claim
            lock.unlink()
            if made:
                lock.parent.rmdir()  # if nothing was written there
        os.close(descriptor)


def _locked(lock: Path, kind: int) -> int | None:
    """The descriptor of a lock file with a lock of this kind; None where another process has it."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(descriptor, kind | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                return descriptor  # a network disk without locks: work goes on unclaimed
            os.close(descriptor)
            return None
        with suppress(FileNotFoundError):
            if os.fstat(descriptor).st_ino == lock.stat().st_ino:
                os.ftruncate(descriptor, 0)
                return descriptor
        os.close(descriptor)  # the one who had it removed the file in between


_cleaned: set[str] = set()


def _remove_leftovers(folder: Path) -> None:
    """Remove what `replacing` left in a folder in processes of this machine that were killed; once per folder."""
    if str(folder) in _cleaned:
        return
    _cleaned.add(str(folder))
    ours = re.compile(rf"\..+\.{re.escape(socket.gethostname())}\.(\d+)\.tmp")
    for entry in os.scandir(folder):
        found = ours.fullmatch(entry.name)
        if found and not _is_alive(int(found[1])):
            with suppress(OSError):
                os.unlink(entry.path)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # another user's
    return True


@contextmanager
def replacing(path: Path, temporary: Path | None = None) -> Iterator[Path]:
    """A temporary path to write to; on success it is flushed to the disk and renamed to `path`.

    After a crash the file is either the old one or the new one, never a part of it.

    Args:
        path: the file to create or replace; its folder is created if it does not exist.
        temporary: where to write first, on the same file system; None is a hidden file beside `path`.

    Raises:
        InputError: an `OSError` occurred while writing, or the disk is full.
    """
    if temporary is None:
        temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path.parent)
        yield temporary
        if temporary.is_file():
            temporary.chmod(0o666 & ~_umask())  # some libraries write files that only their owner can read
        flush_to_disk(temporary)
        temporary.replace(path)
        flush_to_disk(path.parent)
    except (InputError, UsageError) as error:
        error.args = (str(error).replace(str(temporary), str(path)),)
        raise
    except Exception as error:
        full = "No space left" in str(error) or (path.parent.is_dir() and is_full(path.parent))
        if not (full or isinstance(error, OSError)):
            raise
        reason = "no space left on the disk" if full else one_line(error)
        raise InputError(f"{path}: cannot be written: {reason}") from error
    finally:
        with suppress(OSError):  # it may not exist, and the first error is the one to report
            temporary.unlink()


def _umask() -> int:
    mask = os.umask(0o077)  # it can only be read by setting it
    os.umask(mask)
    return mask


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
