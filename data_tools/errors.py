"""The two kinds of errors that commands print as one line, and the one-line form of a library's error."""


class InputError(Exception):
    """A file or another input is wrong; the message names the file, row or key and what was expected.

    Commands print the message as one line and exit with code 1.
    """


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
