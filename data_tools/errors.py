"""The two ways a command can end badly, each with one line for the user."""


class InputError(Exception):
    """Something read from outside is wrong: the message names the file, row or key and what was expected.

    Commands print it as one line and exit with 1.
    """


class UsageError(Exception):
    """The command was asked for something it cannot mean: commands print one line and exit with 2."""
