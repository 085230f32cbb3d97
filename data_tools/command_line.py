"""The command `data-tools`: it parses, calls and prints."""

from dataclasses import asdict
from enum import StrEnum
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
    from data_tools.scenes.dataset import write_scenes

    write_scenes(out, train, dev, test, seed)
    print(f"{out}: {train} training, {dev} validation and {test} test images with five captions each")


@app.command(epilog="Example: data-tools splits dataset_coco.json --out data/coco --images data/coco/images")
def splits(
    sources: Annotated[
        list[Path],
        typer.Argument(
            help="Karpathy's dataset_*.json, COCO's captions_*.json (several), or a table with the columns "
            "image and caption (.csv, .tsv, .jsonl)."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the data set, for instance data/coco.")],
    images: Annotated[Path | None, typer.Option(help="Check that each image's file lies in this folder.")] = None,
    ids: Annotated[
        list[str] | None,
        typer.Option(
            help="For COCO's captions: SPLIT=FILE of ids; images of no list are train.", metavar="SPLIT=FILE"
        ),
    ] = None,
    captions: Annotated[int, typer.Option(min=0, help="Captions kept of an image, the first ones; 0 is all.")] = 5,
    dev: Annotated[float, typer.Option(min=0, help="For a table: images of dev, or a share below 1.")] = 0.1,
    test: Annotated[float, typer.Option(min=0, help="For a table: images of test, or a share below 1.")] = 0.1,
    seed: Annotated[int, typer.Option(min=0, help="For a table: draws the splits.")] = 2022,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write the ids, captions and id mapping of a data set's splits in SCAN's layout.

    An image with more captions than --captions keeps the first of them, one with fewer keeps what it has, one
    without any is left out; all are counted.
    """
    from data_tools.captions.collection import check_files_exist, write_split_files
    from data_tools.captions.sources import SplitOptions, parse_id_lists, read_captioned_images

    found = read_captioned_images(sources, SplitOptions(parse_id_lists(ids or []), dev, test, seed))
    if images:
        check_files_exist(found, images)
    written = write_split_files(found, out, sources[0], captions)
    if as_json:
        print_json({name: asdict(summary) for name, summary in written.items()})
        return
    for name, summary in written.items():
        print(f"{out / 'precomp' / name}_ids.txt, _caps.txt: {summary}")
    print(f"{out / 'id_mapping.json'}: {len(found)} images" + (f", all in {images}" if images else ""))


@app.command(epilog="Example: data-tools vocab data/coco")
def vocab(
    data: Annotated[Path, typer.Argument(help="Folder of the data set.")],
    out: Annotated[Path | None, typer.Option(help="File to write; DATA/vocab.json without it.")] = None,
    splits: Annotated[str, typer.Option(help="Splits whose captions count, with commas.")] = "train,dev",
    threshold: Annotated[int, typer.Option(min=1, help="Occurrences that a word needs.")] = 4,
    compare: Annotated[Path | None, typer.Option(help="Another vocabulary; say how the two differ.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Build SCAN's vocabulary from the captions of a data set."""
    from data_tools.captions.splits import load_split
    from data_tools.captions.vocabulary import Vocabulary, count_words
    from data_tools.layout import precomp_folder

    folder = precomp_folder(data)
    texts = [text for name in splits.split(",") for text in load_split(folder, name.strip()).captions]
    counts, path = count_words(texts), out or data / "vocab.json"
    vocabulary = Vocabulary.of_counts(counts, threshold)
    vocabulary.save(path)
    coverage = vocabulary.coverage(counts)
    compared = vocabulary.compare(Vocabulary.load(compare), counts) if compare else {}
    if as_json:
        summary = {"file": str(path), "words": len(vocabulary), "captions": len(texts), "coverage": coverage}
        print_json({**summary, "compared": compared})
        return
    print(f"{path}: {len(vocabulary)} words; they make up {coverage:.2%} of the words of {len(texts)} captions")
    if compare:
        print(f"{compare}: " + ", ".join(f"{name} {value}" for name, value in compared.items()))


class Format(StrEnum):
    """Formats of region features."""

    store = "store"
    scan = "scan"
    butd = "butd"
    lxmert = "lxmert"
    milvlg = "milvlg"


class FeatureType(StrEnum):
    """Types of features."""

    float32 = "float32"
    float16 = "float16"


@app.command(epilog="Example: data-tools convert trainval.tsv data/coco/precomp/features.h5 --dtype float16")
def convert(
    source: Annotated[
        Path,
        typer.Argument(help="A store, SCAN's .npy or a folder of them, a BUTD or LXMERT .tsv, a folder of .npz."),
    ],
    target: Annotated[Path, typer.Argument(help="What to write; .h5 is a store, .npy is SCAN's.")],
    to: Annotated[Format | None, typer.Option(help="Format, where the name of TARGET does not say it.")] = None,
    dtype: Annotated[
        FeatureType | None, typer.Option(help="Type of the features; as in SOURCE without it.")
    ] = None,
    ids: Annotated[Path | None, typer.Option(help="File of the ids to convert, in this order.")] = None,
    to_ids: Annotated[
        Path | None, typer.Option(help="id_mapping.json: SOURCE names images by files, TARGET by ids.")
    ] = None,
    to_file_names: Annotated[
        Path | None, typer.Option(help="id_mapping.json: TARGET names images by their files.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace TARGET.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Convert region features between the feature store and the formats of other projects.

    What the target cannot hold is left out and said.
    """
    from data_tools.formats.conversion import Choices, convert

    done = convert(source, target, to, Choices(dtype, ids, to_ids, to_file_names, overwrite))
    if as_json:
        print_json({**asdict(done), "files": [str(path) for path in done.files]})
        return
    print(f"{target}: {done.images} images, {done.regions} regions x {done.dim} {done.dtype}")
    for note in done.notes:
        print(f"  {note}")


@app.command(epilog="Example: data-tools join features.h5 machine1.h5 machine2.h5")
def join(
    file: Annotated[Path, typer.Argument(help="The joined store.")],
    stores: Annotated[
        list[Path] | None, typer.Argument(help="Stores to join, in this order; without any, FILE.parts/.")
    ] = None,
    virtual: Annotated[bool, typer.Option("--virtual", help="Copy no features; the stores must stay.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Join stores that several machines made in the same way, or the parts that a run left."""
    from data_tools.store.joining import join_parts, join_stores

    if virtual and not stores:
        raise UsageError("--virtual needs the stores whose features it shows")
    if stores and file.exists() and not overwrite:
        raise UsageError(f"{file}: is there already; --overwrite replaces it")
    done = join_stores(file, stores, virtual) if stores else join_parts(file)
    if as_json:
        print_json({**asdict(done), "file": str(done.file)})
    else:
        print(done)
    if done.failures and not stores:
        raise typer.Exit(1)  # as the run whose parts they were would have ended


@app.command(epilog="Example: data-tools inspect features.h5 --image 42 --images data/coco/images --out 42.png")
def inspect(
    store: Annotated[Path, typer.Argument(help="The feature store.")],
    image: Annotated[str | None, typer.Option(help="Id of an image whose boxes are drawn.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of the pictures; DATA/images without it.")] = None,
    out: Annotated[Path | None, typer.Option(help="The drawing, for instance 42.png.")] = None,
    labels: Annotated[
        str | None, typer.Option(help="Names of classes: a shipped list or a file; the store's own without it.")
    ] = None,
    sample: Annotated[int, typer.Option(min=1, help="Images that the statistics are of.")] = 1000,
    everything: Annotated[bool, typer.Option("--all", help="Statistics of all images.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a feature store holds and how it was made, or draw the regions of one image."""
    from data_tools.checks.inspection import as_text, describe, draw_image
    from data_tools.detection.labels import load_labels
    from data_tools.files import replacing
    from data_tools.layout import images_folder
    from data_tools.store.reading import FeatureStore

    if (image is None) != (out is None):
        raise UsageError("--image and --out go together: which image to draw, and where to")
    with FeatureStore(store) as opened:
        if image is None or out is None:
            described = describe(opened, None if everything else sample)
            print_json(described) if as_json else print(as_text(described))
            return
        folder = images or images_folder(store.resolve().parent.parent)
        drawn = draw_image(opened, image, folder, load_labels(labels) if labels else None)
        with replacing(out) as temporary:
            drawn.save(temporary, "PNG")
        regions = int(opened.counts[opened.rows([image])[0]])
        print_json({"file": str(out), "regions": regions}) if as_json else print(f"{out}: {regions} regions")


@app.command(epilog="Example: data-tools verify data/coco")
def verify(
    data: Annotated[Path, typer.Argument(help="Folder of the data set.")],
    features: Annotated[Path | None, typer.Option(help="Features elsewhere than in the folder.")] = None,
    sample: Annotated[int, typer.Option(min=0, help="Pictures to decode, spread evenly.")] = 1000,
    everything: Annotated[bool, typer.Option("--all", help="Decode every picture.")] = False,
    mend: Annotated[
        bool, typer.Option("--fix", help="Remove byte-order marks and Windows line ends from split files.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Tell whether a data folder will train: exit code 0 if it will, 1 if not."""
    from data_tools.checks.verification import fix, verify

    report = verify(data, features, None if everything else sample)
    fixed = fix(report) if mend else []
    if fixed:
        report = verify(data, features, None if everything else sample)
    if as_json:
        findings = [{**asdict(finding), "file": str(finding.file)} for finding in report.findings]
        summary = {"will_train": report.will_train, "findings": findings, "facts": report.facts}
        print_json({**summary, "fixed": [str(path) for path in fixed]})
    else:
        for line in (*report.facts, *(f"fixed: {path}" for path in fixed), *report.findings):
            print(line)
        errors = sum(finding.fatal for finding in report.findings)
        warnings = len(report.findings) - errors
        verdict = "will train" if report.will_train else "will not train as it is"
        print(f"{data}: {verdict} (errors: {errors}, warnings: {warnings})")
    if not report.will_train:
        raise typer.Exit(1)


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
    from data_tools.detection.labels import load_labels
    from data_tools.detection.visual_genome import convert_visual_genome
    from data_tools.detection.visual_genome_names import read_vocabularies

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
