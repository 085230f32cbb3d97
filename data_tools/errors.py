"""The two ways a command can end badly, each with one line for the user, and how a library's error becomes one."""


class InputError(Exception):
    """Something read from outside is wrong: the message names the file, row or key and what was expected.

    Commands print it as one line and exit with 1.
    """


class UsageError(Exception):
    """The command was asked for something it cannot mean: commands print one line and exit with 2."""


def one_line(error: BaseException, limit: int = 200) -> str:
    """What an error of a library says, as one line of at most `limit` characters.

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
