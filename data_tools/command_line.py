"""The command `data-tools`: it parses, calls and prints."""

from pathlib import Path
from typing import Annotated

import typer

from data_tools.console import entry_point, print_json
from data_tools.errors import UsageError

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


@app.command(
    epilog="Example: data-tools visual-genome downloads/visual_genome --out data/visual_genome --lists lists"
)
def visual_genome(
    source: Annotated[Path, typer.Argument(help="Folder of objects.json, attributes.json, image_data.json.")],
    out: Annotated[Path, typer.Option(help="Folder of the data set; its images are in OUT/images.")],
    lists: Annotated[
        Path | None,
        typer.Option(
            help="Folder of train.txt, val.txt, test.txt: a line is ID, or IMAGE.jpg ID.xml. Default: random."
        ),
    ] = None,
    val: Annotated[int, typer.Option(min=0, help="Validation images of the random split.")] = 5000,
    test: Annotated[int, typer.Option(min=0, help="Test images of the random split.")] = 5000,
    seed: Annotated[int, typer.Option(min=0, help="Decides the random split.")] = 2022,
    labels: Annotated[
        str, typer.Option(help="A shipped list of classes and attributes, or a JSON file of one.")
    ] = "visual_genome",
    objects_vocab: Annotated[
        Path | None, typer.Option(help="Classes in the published form: NAME,OTHER SPELLING a line.")
    ] = None,
    attributes_vocab: Annotated[Path | None, typer.Option(help="Attributes in the same form.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Turn Visual Genome's annotations into a data set for butd train and butd evaluate."""
    from data_tools.labels import load_labels
    from data_tools.visual_genome import convert_visual_genome
    from data_tools.visual_genome_names import read_vocabularies

    if (objects_vocab is None) != (attributes_vocab is None):
        raise UsageError("--objects-vocab and --attributes-vocab go together")
    if objects_vocab is not None and attributes_vocab is not None:
        vocabulary = read_vocabularies(objects_vocab, attributes_vocab)
    else:
        vocabulary = load_labels(labels)
    done = convert_visual_genome(source, out, vocabulary, lists, val, test, seed)
    if as_json:
        print_json(done.as_json())
    else:
        print(done.as_text())


data_tools = entry_point(app)
