"""The two kinds of errors that commands print as one line, and the one-line form of a library's error."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class InputError(Exception):
    """A file or another input is wrong; the message names the file, row or key and what was expected.

    Commands print the message as one line and exit with code 1.
    """


class UnavailableError(InputError):
    """A file cannot be read now, whatever it holds: it is locked, not permitted, or too many files are open."""


class UsageError(Exception):
    """The arguments of a command are wrong; commands print the message as one line and exit with code 2."""


def one_line(error: BaseException, limit: int = 200) -> str:
    """The message of any error as one line of at most `limit` characters.

    An error without a message gives the name of its type.

    >>> one_line(ValueError("expected  a number,\\n  found 'x'"))
    "expected a number, found 'x'"
    >>> one_line(KeyError("boxes"))
    'the key boxes is missing'
    """
    if isinstance(error, KeyError) and len(error.args) == 1:
        return f"the key {error.args[0]} is missing"[:limit]
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:limit] or type(error).__name__


@contextmanager
def reading(path: Path | str, problem: str = "cannot be read") -> Iterator[None]:
    """Any exception of a library that reads `path` becomes an `InputError` of one line: path, problem, reason.

    Libraries raise types that nobody foresaw on files that are damaged or hostile, so this catches all of them.
    Put nothing but the library's call inside: an error of our own code would look like a wrong file.

    >>> with reading("model.pth", "not a weight file"):
    ...     raise RuntimeError("unexpected end")
    Traceback (most recent call last):
    data_tools.errors.InputError: model.pth: not a weight file: unexpected end

    Raises:
        InputError: see above; an `InputError` or `UsageError` raised inside stays as it is.
    """
    try:
        yield
    except (InputError, UsageError):
        raise
    except Exception as error:
        raise InputError(f"{path}: {problem}: {one_line(error)}") from error
