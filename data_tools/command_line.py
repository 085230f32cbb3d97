"""The command `data-tools`: it parses, calls and prints."""

from pathlib import Path
from typing import Annotated

import typer

from data_tools.console import entry_point

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Data sets and feature stores for image-text matching.",
)


@app.callback()
def group() -> None:
    """Keep sub-commands even while there is one."""


@app.command(epilog="Example: data-tools scenes data/scenes")
def scenes(
    out: Annotated[Path, typer.Argument(help="Folder to write the data set to.")],
    train: Annotated[int, typer.Option(min=1, help="Training images.")] = 600,
    dev: Annotated[int, typer.Option(min=1, help="Validation images.")] = 100,
    test: Annotated[int, typer.Option(min=1, help="Test images.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same bytes.")] = 2022,
) -> None:
    """Draw a small data set: pictures, captions, boxes, classes and attributes."""
    from data_tools.scenes import write_scenes

    write_scenes(out, train, dev, test, seed)
    print(f"{out}: {train} training, {dev} validation and {test} test images with five captions each")


data_tools = entry_point(app)
