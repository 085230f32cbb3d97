"""The command `chan`: its commands are in `chan.commands`, which parse, call and print.

Each command imports what it needs in its body, so that `--help` and a usage error import no library of arithmetic.
"""

import inspect
import sys
from pathlib import Path

# Their order is that of the commands in the help.
from chan.commands import making, measuring, searching  # noqa: F401
from chan.options import app
from data_tools.console import entry_point
from data_tools.errors import UsageError


def _checked_app() -> None:
    """The application; `chan train --epochs 3` is told how a key of the configuration is given."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["train"]:
        known = {
            f"--{name.replace('_', '-')}" for name in [*inspect.signature(making.train).parameters, "help", "json"]
        }
        for option in (argument.partition("=")[0] for argument in arguments if argument.startswith("--")):
            if option not in known:
                _suggest_key(option)
    app()


def _suggest_key(option: str) -> None:
    name = option.removeprefix("--").replace("-", "_")
    if f"    {name}: " not in Path(__file__).with_name("config.py").read_text("utf-8"):
        return  # a usage error imports no library, unless the option has the name of a key
    from chan.config import Config
    from chan.keys import keys_of

    keys = [key.name for key in keys_of(Config()) if key.name == name or key.name.endswith(f".{name}")]
    if keys:
        raise UsageError(f"{option}: no such option; a key of the configuration is given as {keys[0]}=VALUE")


chan = entry_point(_checked_app)
