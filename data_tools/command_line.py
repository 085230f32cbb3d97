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


@app.command(epilog="Example: data-tools splits dataset_coco.json --out data/coco")
def splits(
    dataset: Annotated[Path, typer.Argument(help="Karpathy's dataset_coco.json or dataset_flickr30k.json.")],
    out: Annotated[Path, typer.Option(help="Folder of the data set, for instance data/coco.")],
) -> None:
    """Write the ids, captions and id mapping of Karpathy's splits in SCAN's layout."""
    from data_tools.karpathy import write_splits

    for name, images in write_splits(dataset, out).items():
        print(f"{out / 'precomp' / name}_ids.txt, _caps.txt: {images} images")


data_tools = entry_point(app)
