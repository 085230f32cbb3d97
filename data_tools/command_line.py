"""The command `data-tools`: it parses, calls and prints.

Each command imports what it needs in its body, so that `--help` and a usage error are quick.
"""

import sys
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from data_tools.console import entry_point, print_json
from data_tools.errors import UsageError
from data_tools.options import INPUT, OUTPUT, RUN, Json, argument, command, flag, make_group, option, seed_option

SPLITS = "Splits"  # a group of the help

app = make_group("data-tools", "Prepare and check data sets and feature stores for image-text matching.")

DataFolder = Annotated[Path, argument("DATA", "Data folder, with the splits in its precomp/ folder.")]


@command(app, "data-tools scenes --out data/scenes")
def scenes(
    *,
    train: Annotated[int, option(SPLITS, "Number of training images.", metavar="N", min=1)] = 600,
    dev: Annotated[int, option(SPLITS, "Number of validation images.", metavar="N", min=1)] = 100,
    test: Annotated[int, option(SPLITS, "Number of test images.", metavar="N", min=1)] = 100,
    seed: Annotated[int, seed_option("the drawn scenes and their captions")] = 2022,
    out: Annotated[Path, option(OUTPUT, "Data folder to write.", metavar="DIR")],
    as_json: Json = False,
) -> None:
    """Draw a small data set: images, captions, boxes, classes and attributes."""
    from data_tools.scenes.dataset import write_scenes

    write_scenes(out, train, dev, test, seed)
    if as_json:
        print_json({"data": str(out), "train": train, "dev": dev, "test": test})
    else:
        print(f"{out}: {train} training, {dev} validation and {test} test images with five captions each")


@command(app, "data-tools splits dataset_coco.json --out data/coco --images data/coco/images")
def splits(
    sources: Annotated[
        list[Path],
        argument(
            "SOURCES",
            "Karpathy's dataset_*.json, COCO's captions_*.json, or a table (.csv, .tsv, .jsonl, .txt) "
            "with columns image and caption.",
        ),
    ],
    *,
    images: Annotated[
        Path | None, option(INPUT, "Image folder; checks that each image's file lies in it.", metavar="DIR")
    ] = None,
    ids: Annotated[
        list[str] | None,
        option(
            SPLITS,
            "For COCO's captions: a split and a file of its ids, one id per line; may be repeated. Images in no "
            "file are train.",
            metavar="SPLIT=FILE",
        ),
    ] = None,
    captions: Annotated[
        int, option(SPLITS, "Captions to keep per image, the first ones; 0 keeps all.", metavar="N", min=0)
    ] = 5,
    dev: Annotated[
        float, option(SPLITS, "For a table: number of dev images, or their share if below 1.", metavar="N", min=0)
    ] = 0.1,
    test: Annotated[
        float, option(SPLITS, "For a table: number of test images, or their share if below 1.", metavar="N", min=0)
    ] = 0.1,
    seed: Annotated[int, seed_option("the random splits of a table")] = 2022,
    out: Annotated[Path, option(OUTPUT, "Data folder to write, for instance data/coco.", metavar="DIR")],
    as_json: Json = False,
) -> None:
    """Write the ids, captions and id mapping of a data set's splits in SCAN's layout.

    An image with more captions than --captions keeps the first of them, an image with fewer keeps all of them, and
    an image without any is left out; the output counts them.
    """
    from data_tools.captions.collection import check_files_exist, write_split_files
    from data_tools.captions.sources import SplitOptions, parse_id_lists, read_captioned_images

    notes: list[str] = []
    found = read_captioned_images(sources, SplitOptions(parse_id_lists(ids or []), dev, test, seed), notes)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    if images:
        check_files_exist(found, images)
    written = write_split_files(found, out, sources[0], captions)
    if as_json:
        print_json({name: asdict(summary) for name, summary in written.items()})
        return
    for name, summary in written.items():
        print(f"{out / 'precomp' / name}_ids.txt, _caps.txt: {summary}")
    print(f"{out / 'id_mapping.json'}: {len(found)} images" + (f", all in {images}" if images else ""))


@command(app, "data-tools vocab data/coco")
def vocab(
    data: DataFolder,
    *,
    splits: Annotated[
        str, option(INPUT, "Splits whose captions are counted, separated by commas.", metavar="NAMES")
    ] = "train,dev",
    compare: Annotated[
        Path | None, option(INPUT, "Another vocabulary file; prints how the two differ.", metavar="FILE")
    ] = None,
    threshold: Annotated[int, option(OUTPUT, "Minimum number of occurrences of a word.", metavar="N", min=1)] = 4,
    out: Annotated[
        Path | None, option(OUTPUT, "Vocabulary file to write.", metavar="FILE", show_default="DATA/vocab.json")
    ] = None,
    as_json: Json = False,
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
    oscar = "oscar"
    vinvl = "vinvl"
    milvlg = "milvlg"
    datasets = "datasets"


class FeatureType(StrEnum):
    """Types of features."""

    float32 = "float32"
    float16 = "float16"


class OnError(StrEnum):
    """What happens with a row that cannot be read."""

    skip = "skip"
    fail = "fail"


@command(app, "data-tools convert trainval.tsv --out data/coco/precomp/features.h5 --dtype float16")
def convert(
    source: Annotated[
        Path,
        argument(
            "SOURCE",
            "A store, SCAN's .npy or a folder of them, a BUTD, LXMERT, Oscar or VinVL .tsv, a folder of .npz.",
        ),
    ],
    *,
    ids: Annotated[
        Path | None,
        option(
            INPUT,
            "Convert only the images with the ids in this file, one id per line, in its order.",
            metavar="FILE",
        ),
    ] = None,
    to_ids: Annotated[
        Path | None,
        option(INPUT, "id_mapping.json that turns the file names of SOURCE into ids in --out.", metavar="FILE"),
    ] = None,
    to_file_names: Annotated[
        Path | None,
        option(INPUT, "id_mapping.json that turns the ids of SOURCE into file names in --out.", metavar="FILE"),
    ] = None,
    on_error: Annotated[
        OnError,
        option(
            INPUT,
            "A damaged row of a TSV: fail stops at it; skip leaves it out and lists it, and the exit code is 1 if "
            "its image has no other row.",
        ),
    ] = OnError.fail,
    out: Annotated[
        Path,
        option(
            OUTPUT,
            "File or folder to write; .h5 is a store, .npy SCAN's array, .parquet a table of Hugging Face's "
            "datasets.",
            metavar="FILE|DIR",
        ),
    ],
    to: Annotated[
        Format | None,
        option(OUTPUT, "Format of the written features.", show_default="by the name of --out"),
    ] = None,
    dtype: Annotated[
        FeatureType | None, option(OUTPUT, "Type of the features.", show_default="that of SOURCE")
    ] = None,
    overwrite: Annotated[bool, flag(OUTPUT, "Replace an existing --out.", "--overwrite")] = False,
    as_json: Json = False,
) -> None:
    """Convert region features between the feature store and the formats of other projects.

    What the format of --out cannot hold is left out, and the output lists it.
    """
    from data_tools.formats.conversion import Choices, convert

    choices = Choices(dtype, ids, to_ids, to_file_names, overwrite, on_error is OnError.skip)
    done = convert(source, out, to, choices)
    if as_json:
        print_json({**asdict(done), "files": [str(path) for path in done.files]})
    else:
        print(f"{out}: {done.images} images, {done.regions} regions x {done.dim} {done.dtype}")
        for note in done.notes:
            print(f"  {note}")
    if done.lost:
        raise typer.Exit(1)  # as extract-features ends when images failed


@command(app, "data-tools join machine1.h5 machine2.h5 --out features.h5")
def join(
    stores: Annotated[
        list[Path] | None,
        argument("STORES", "Stores to join, in this order.", show_default="the parts in the folder OUT.parts"),
    ] = None,
    *,
    out: Annotated[Path, option(OUTPUT, "Joined store to write.", metavar="FILE")],
    virtual: Annotated[
        bool,
        flag(
            OUTPUT,
            "Refer to the features in STORES, which must then stay where they are, instead of copying them.",
            "--virtual",
        ),
    ] = False,
    overwrite: Annotated[bool, flag(OUTPUT, "Replace an existing --out.", "--overwrite")] = False,
    as_json: Json = False,
) -> None:
    """Join stores that several machines made in the same way, or the parts that a run left."""
    if virtual and not stores:
        raise UsageError("--virtual needs the stores that it refers to")
    if stores and out.exists() and not overwrite:
        raise UsageError(f"{out}: exists already; --overwrite replaces it")
    from data_tools.files import claimed
    from data_tools.store.joining import join_parts, join_stores

    with claimed(out, out.with_name(f".{out.name}.lock")):  # that of extract-features, which may be at work
        done = join_stores(out, stores, virtual) if stores else join_parts(out)
    if as_json:
        print_json({**asdict(done), "file": str(done.file)})
    else:
        print(done)
    if done.failures and not stores:
        raise typer.Exit(1)  # as the run whose parts they were would have ended


@command(app, "data-tools compare features.h5 published.tsv --out histogram.png")
def compare(
    ours: Annotated[
        Path, argument("OURS", "A store, SCAN's .npy or a folder of them, a TSV, or a folder of MILVLG's .npz.")
    ],
    theirs: Annotated[Path, argument("THEIRS", "The features of the same images that OURS are compared with.")],
    *,
    id_mapping: Annotated[
        Path | None,
        option(INPUT, "id_mapping.json that turns the file names of THEIRS into ids.", metavar="FILE"),
    ] = None,
    at_least: Annotated[
        float,
        option(
            RUN,
            "Exit with 1 if a smaller share of the rows has a partner with a cosine of 0.99 or more.",
            metavar="SHARE",
            min=0,
            max=1,
        ),
    ] = 0.0,
    out: Annotated[
        Path | None, option(OUTPUT, "Also write a histogram of the distances (PNG).", metavar="FILE")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare two sets of region features: rows matched one to one by cosine, and the boxes of matched rows."""
    from data_tools.checks.comparison import compare_features, draw_histogram

    found = compare_features(ours, theirs, id_mapping)
    if out is not None:
        draw_histogram(found, out)
    if as_json:
        print_json(found.as_json())
    else:
        print(found.as_text())
    if found.share() < at_least:
        raise typer.Exit(1)


@command(app, "data-tools inspect features.h5 --image 42 --images data/coco/images --out 42.png")
def inspect(
    store: Annotated[Path, argument("STORE", "Feature store to inspect.")],
    *,
    image: Annotated[str | None, option(INPUT, "Id of an image whose regions are drawn.", metavar="ID")] = None,
    images: Annotated[
        Path | None,
        option(INPUT, "Folder of the image files.", metavar="DIR", show_default="images/ of the data folder"),
    ] = None,
    labels: Annotated[
        str | None,
        option(
            INPUT,
            "Names of the classes: a shipped list (visual_genome, scenes) or a JSON file.",
            metavar="NAME|FILE",
            show_default="the list that the store names",
        ),
    ] = None,
    sample: Annotated[
        int, option(INPUT, "Number of images that the statistics are taken from.", metavar="N", min=1)
    ] = 1000,
    everything: Annotated[bool, flag(INPUT, "Take the statistics from all images.", "--all")] = False,
    out: Annotated[
        Path | None, option(OUTPUT, "Picture (PNG) to write; goes with --image.", metavar="FILE")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what a feature store holds and how it was made, or draw the regions of one image."""
    if (image is None) != (out is None):
        raise UsageError("--image and --out go together: which image to draw, and the file to write")
    from data_tools.checks.inspection import as_text, draw_image, inspect_store
    from data_tools.detection.labels import load_labels
    from data_tools.files import replacing
    from data_tools.layout import images_folder
    from data_tools.store.reading import FeatureStore

    with FeatureStore(store) as opened:
        if image is None or out is None:
            inspected = inspect_store(opened, None if everything else sample)
            print_json(inspected) if as_json else print(as_text(inspected))
            return
        folder = images or images_folder(store.resolve().parent.parent)
        drawn = draw_image(opened, image, folder, load_labels(labels) if labels else None)
        with replacing(out) as temporary:
            drawn.save(temporary, "PNG")
        regions = int(opened.counts[opened.rows([image])[0]])
        print_json({"file": str(out), "regions": regions}) if as_json else print(f"{out}: {regions} regions")


@command(app, "data-tools verify data/coco")
def verify(
    data: DataFolder,
    *,
    features: Annotated[
        Path | None,
        option(
            INPUT,
            "Features: an HDF5 store, a .npy file of SCAN, or a folder that holds one of them.",
            metavar="FILE|DIR",
            show_default="the features in DATA",
        ),
    ] = None,
    sample: Annotated[int, option(INPUT, "Number of images to decode, spread evenly.", metavar="N", min=0)] = 1000,
    everything: Annotated[bool, flag(INPUT, "Decode all images.", "--all")] = False,
    fix: Annotated[
        bool, flag(OUTPUT, "Remove byte-order marks and Windows line ends from split files.", "--fix")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check whether a data folder is ready for training: the exit code is 0 if it is, 1 if not."""
    from data_tools.checks.verification import fix_files, verify

    report = verify(data, features, None if everything else sample)
    fixed = fix_files(report) if fix else []
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


@command(app, "data-tools visual-genome downloads/visual_genome --out data/visual_genome --lists lists")
def visual_genome(
    source: Annotated[Path, argument("SOURCE", "Folder with objects.json, attributes.json and image_data.json.")],
    *,
    labels: Annotated[
        str,
        option(
            INPUT,
            "Classes and attributes: a shipped list (visual_genome, scenes) or a JSON file.",
            metavar="NAME|FILE",
        ),
    ] = "visual_genome",
    objects_vocab: Annotated[
        Path | None,
        option(
            INPUT,
            "Classes as published, one NAME,OTHER SPELLING,... per line, instead of --labels; goes with "
            "--attributes-vocab.",
            metavar="FILE",
        ),
    ] = None,
    attributes_vocab: Annotated[
        Path | None, option(INPUT, "Attributes in the same form; goes with --objects-vocab.", metavar="FILE")
    ] = None,
    lists: Annotated[
        Path | None,
        option(
            SPLITS,
            "Folder with train.txt, val.txt and test.txt; a line is ID, or IMAGE.jpg ID.xml.",
            metavar="DIR",
            show_default="a random split",
        ),
    ] = None,
    val: Annotated[
        int, option(SPLITS, "Number of validation images of the random split.", metavar="N", min=0)
    ] = 5000,
    test: Annotated[int, option(SPLITS, "Number of test images of the random split.", metavar="N", min=0)] = 5000,
    seed: Annotated[int, seed_option("the random split")] = 2022,
    out: Annotated[Path, option(OUTPUT, "Data folder to write; its images belong in DIR/images.", metavar="DIR")],
    as_json: Json = False,
) -> None:
    """Turn Visual Genome's annotations into a data set for butd train and butd evaluate."""
    if (objects_vocab is None) != (attributes_vocab is None):
        raise UsageError("--objects-vocab and --attributes-vocab go together")
    from data_tools.detection.labels import load_labels
    from data_tools.detection.visual_genome import convert_visual_genome
    from data_tools.detection.visual_genome_names import read_vocabularies

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
