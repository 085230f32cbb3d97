"""How the four commands declare themselves: one set of settings, options in groups, an example, `--version`.

The help of an option is a plain sentence; typer adds its default. Nothing here imports more than typer, so
that `--help` and a usage error are quick.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import typer

from data_tools.configs import config_names
from data_tools.console import UserInterruptError
from data_tools.files import check_writable

INPUT, REGIONS, NETWORK, RUN, OUTPUT = "Input", "Regions", "Network", "Run", "Output"  # groups in the help

OUTPUTS = ("out", "scores")  # parameters of commands that name what is written

_P = ParamSpec("_P")
_R = TypeVar("_R")


def option(group: str, text: str, *names: str, **settings: Any) -> Any:
    """A typer option in a group of the help; `text` has no square brackets, which rich reads as markup."""
    return typer.Option(*names, help=text, rich_help_panel=group, **settings)


def flag(group: str, text: str, name: str) -> Any:
    """A typer option without a value."""
    return option(group, text, name, metavar="")


def argument(metavar: str, text: str, **settings: Any) -> Any:
    """A typer argument; `text` has no square brackets, which rich reads as markup."""
    return typer.Argument(metavar=metavar, help=text, **settings)


def config_option(package: str, group: str, note: str = "") -> Any:
    """`--config` of a command: the help lists the configurations that `package` ships, and `note` follows."""
    names = config_names(package)
    text = f"Name of a shipped configuration ({', '.join(names)}), path of a YAML file, or folder of a run.{note}"
    return option(group, text, metavar="NAME|FILE", autocompletion=lambda: names)


def seed_option(of: str, **settings: Any) -> Any:
    """`--seed` of a command; `of` says what is random."""
    return option(RUN, f"Seed of {of}: the same seed gives the same result.", metavar="N", min=0, **settings)


def version_option(name: str) -> Any:
    """`--version` of the command `name`: prints the name and the version of the project, and ends."""

    def show(wanted: bool) -> None:
        if wanted:
            print(f"{name} {project_version()}")
            raise typer.Exit

    return typer.Option("--version", help="Print the version and exit.", metavar="", callback=show, is_eager=True)


Json = Annotated[bool, flag(OUTPUT, "Print one JSON document on standard output instead of text.", "--json")]
Device = Annotated[
    str,
    option(
        RUN,
        "Device that computes: auto (the first GPU, or the CPU where there is none), cpu, cuda or cuda:N.",
        metavar="DEVICE",
    ),
]
Resume = Annotated[bool, flag(RUN, "Continue the run in --out from its last checkpoint.", "--resume")]


def project_version() -> str:
    """The version of the installed project; "(not installed)" where it runs from a bare copy of its files."""
    from importlib.metadata import PackageNotFoundError, version  # not above: it takes as long as typer

    try:
        return version("pixels-to-recall")
    except PackageNotFoundError:
        return "(not installed)"


def make_app(**settings: Any) -> typer.Typer:
    """An application with the settings that all commands share: groups in the help, plain tracebacks."""
    return typer.Typer(rich_markup_mode="rich", pretty_exceptions_enable=False, **settings)


def make_group(name: str, summary: str) -> typer.Typer:
    """An application of several sub-commands, with `--version`."""
    app = make_app(name=name, help=summary, no_args_is_help=True)

    @app.callback()
    def options(version: Annotated[bool, version_option(name)] = False) -> None:
        pass

    return app


def _probe(out: object) -> None:
    """Check, before any work, that a file or folder can be written there."""
    if isinstance(out, Path):
        check_writable(out / "probe" if out.is_dir() else out)


def command(
    app: typer.Typer, example: str, resuming: str = "", name: str | None = None
) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Register a function as a command of `app`, which looks whether it can write its `OUTPUTS` before it begins.

    Args:
        app: see `make_app` and `make_group`.
        example: a command line that works, shown below the options.
        resuming: how to continue, for the line that is printed when the user interrupts the command.
        name: of the command; by default the function's, with hyphens.
    """

    def register(body: Callable[_P, _R]) -> Callable[_P, _R]:
        @functools.wraps(body)
        def interruptible(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            try:
                for name in OUTPUTS:
                    _probe(kwargs.get(name))
                return body(*args, **kwargs)
            except KeyboardInterrupt:
                raise UserInterruptError(resuming) from None

        text = "\n\n".join(" ".join(lines.split()) for lines in (body.__doc__ or "").split("\n\n"))
        app.command(name, help=text, epilog=f"Example:\n{example}")(interruptible)
        return body

    return register
