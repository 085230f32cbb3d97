"""The first look at a file of unknown origin, in a process of its own.

HDF5 is a C library that crashes or never ends on some damaged files. `first_look` therefore opens a store as the
caller is about to, in another process with limits of time and memory; a signal there means that the file is
damaged. A file is looked at once per process, and one that this process wrote not at all.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from data_tools.errors import InputError, UnavailableError, one_line

DAMAGED = "not a readable HDF5 file (damaged, truncated, or another format)"

_Identity = tuple[int, int, int, int]  # a file and its content: device, inode, size, time of the last change
_known: set[_Identity] = set()
_is_other_process = False


def look_here() -> None:
    """This process is the other one: it looks at files itself."""
    global _is_other_process
    _is_other_process = True


def identity(path: Path) -> _Identity:
    """Device, inode, size and time of change of a file; they stay the same when it is renamed."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def mark_known(path: Path) -> None:
    """This process wrote `path`, so that no first look is needed."""
    _known.add(identity(path))


def check_first(paths: Sequence[Path]) -> None:
    """Look at those of these stores that this process does not know yet, all in one other process.

    Raises:
        UnavailableError: a store cannot be opened now: no permission, locked, too many open files.
        InputError: a store is missing, damaged, hostile or of another format; the message is about the first one.
    """
    unknown = []
    for path in paths:
        try:
            if not path.is_file():
                raise InputError(f"{path}: no such file")
            with path.open("rb"):
                pass
        except OSError as error:
            raise UnavailableError(f"{path}: cannot be opened: {one_line(error)}") from None
        if identity(path) not in _known:
            unknown.append(path)
    if unknown and not _is_other_process:
        _known.update(_looked_at(unknown))


def _looked_at(paths: Sequence[Path]) -> set[_Identity]:
    """The identities of these stores and of the sources of virtual ones, as another process found them."""
    command = [sys.executable, "-P", "-c", "from data_tools.store.first_look import main; main()"]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
        "OPENBLAS_NUM_THREADS": "1",  # threads would only take address space and time
        "OMP_NUM_THREADS": "1",
    }
    try:
        done = subprocess.run(
            command,
            input=json.dumps([str(path) for path in paths]),
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
    except OSError as error:  # too many open files or processes
        raise UnavailableError(f"{paths[0]}: cannot be checked: {one_line(error)}") from None
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    for answer in answers:
        if "error" in answer:
            raise (UnavailableError if answer["unavailable"] else InputError)(answer["error"])
    if len(answers) < len(paths):
        path = paths[len(answers)]
        if done.returncode < 0:
            raise InputError(f"{path}: {DAMAGED}")
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise InputError(f"{path}: cannot be checked in another process: {reason}")
    return {tuple(found) for answer in answers for found in answer["known"]}
