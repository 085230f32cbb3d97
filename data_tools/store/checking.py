"""Has stores checked (`data_tools.store.structure`) by another process, once per file.

It is started for the first file, has a limit of memory, takes one path per line, and answers each with one line.
It ends with the process that started it. A file that makes it crash, or gets no answer in time, is damaged.
"""

import atexit
import json
import os
import select
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from data_tools.errors import InputError, UnavailableError, one_line

SECONDS, BYTES_PER_SECOND = 10.0, 20e6  # a check may take so long, and longer for a large file
MEMORY = 16 << 30  # bytes of address space

Identity = tuple[str, int, int, int]

_checked: set[Identity] = set()
_checker: "_Checker | None" = None


def check_store(path: Path) -> None:
    """Check a store before it is opened, unless this process has checked it as it is now.

    Raises:
        InputError: it is not a whole store; the message says what is wrong.
        UnavailableError: it cannot be read now.
    """
    global _checker
    try:
        identity = _identity(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise UnavailableError(f"{path}: cannot be read now: {one_line(error)}") from None
    if identity in _checked:
        return
    if _checker is None or not _checker.is_own():
        _checker = _Checker()
    _checker.check(path)
    _checked.add(identity)


def _identity(path: Path) -> Identity:
    status = path.stat()
    return os.path.realpath(path), status.st_ino, status.st_size, status.st_mtime_ns


class _Checker:
    """The process that checks."""

    def __init__(self) -> None:
        self._owner = os.getpid()  # a fork does not use its parent's
        self._start()
        atexit.register(self._stop)

    def is_own(self) -> bool:
        """Whether this process started it."""
        return self._owner == os.getpid()

    def check(self, path: Path) -> None:
        """Check a file; see `check_store`."""
        if self._process.poll() is not None:  # somebody killed it
            self._start()
        answer = self._ask(str(path.absolute()), SECONDS + path.stat().st_size / BYTES_PER_SECOND)
        if answer is None:
            self._stop()
            self._start()
            raise InputError(f"{path}: damaged: HDF5 crashes or never ends when it reads this file")
        if answer:
            message = answer["message"].replace(str(path.absolute()), str(path))
            raise (UnavailableError if answer["unavailable"] else InputError)(message)

    def _ask(self, path: str, seconds: float) -> dict[str, Any] | None:
        """The error of a check, empty if there is none; None where the process gave no answer in time."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(path).encode() + b"\n")
        except OSError:
            return None
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            return None
        line = self._process.stdout.readline()
        return json.loads(line) if line.endswith(b"\n") else None

    def _start(self) -> None:
        program = f"import sys; sys.path[:] = {sys.path!r}; from data_tools.store.checking import serve; serve()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the process that started it
        )

    def _stop(self) -> None:
        if self.is_own():
            with suppress(OSError):
                self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()


def serve() -> None:
    """Check the files whose paths come on standard input, one per line, until it ends."""
    import resource

    from data_tools.store.structure import check_structure, describe

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    for line in sys.stdin.buffer:
        answer: dict[str, Any] = {}
        try:
            check_structure(Path(json.loads(line)))
        except Exception as error:
            answer = describe(error)
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()
