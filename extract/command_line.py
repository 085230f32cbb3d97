"""The commands `extract-features` and `butd`: they parse, call and print.

Everything that imports Detectron2 or torch is imported by the command that needs it, so that `--help` is
quick and a missing Detectron2 is one line.
"""

import importlib.util
import sys
import time
import warnings
from pathlib import Path
from typing import Annotated

import typer

from data_tools.console import entry_point, print_json
from data_tools.errors import InputError, UsageError
from data_tools.files import read_json
from extract.choices import PUBLISHED, PUBLISHED_WEIGHTS, Dtype, Engine, OnError, Precision, Rule, RunOptions

extract_features_app = typer.Typer(add_completion=False, rich_markup_mode=None)
butd_app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Train, evaluate and look through bottom-up-attention detectors.",
)

Config = Annotated[str, typer.Option(help="Name of a shipped configuration, or a YAML file.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Json = Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")]


def require_detectron2() -> None:
    """Raise `InputError` that says how to install Detectron2 where it does not import."""
    if importlib.util.find_spec("detectron2") is None:
        raise InputError("Detectron2 is not installed: run python -m extract.install_detectron2")
    # about Detectron2's use of torch, which a user of these commands cannot change
    warnings.filterwarnings("ignore", category=FutureWarning, message=r".*torch\.jit")
    warnings.filterwarnings("ignore", category=UserWarning, message=r"torch\.meshgrid")


@extract_features_app.command(
    epilog="Example: extract-features data/coco/images   (finds data/coco/id_mapping.json and writes "
    "data/coco/precomp/features.h5)"
)
def extract_features_command(
    images: Annotated[
        Path,
        typer.Argument(help="Folder of images, searched with the folders in it; or a text file, an image a line."),
    ],
    output: Annotated[
        Path | None, typer.Option(help="The feature store. Default: IMAGES/../precomp/features.h5")
    ] = None,
    id_mapping: Annotated[
        Path | None,
        typer.Option(help="JSON of ids and files. Default: IMAGES/../id_mapping.json, else file names are ids."),
    ] = None,
    split: Annotated[Path | None, typer.Option(help="Only the images of this file of ids, one a line.")] = None,
    config: Config = PUBLISHED,
    weights: Annotated[
        str | None,
        typer.Option(
            help=f"A file, a URL, or a Hugging Face repository. Default for {PUBLISHED}: {PUBLISHED_WEIGHTS}. "
            "The word random gives an untrained network."
        ),
    ] = None,
    selection: Annotated[
        Rule,
        typer.Option(help="caffe: proposals, NMS by class; detectron2: regressed boxes, one NMS for all."),
    ] = Rule.CAFFE,
    num_boxes: Annotated[
        int | None, typer.Option(min=1, help="Regions of every image. Default: see --config.")
    ] = None,
    min_boxes: Annotated[int | None, typer.Option(min=1, help="Fewest regions of an image.")] = None,
    max_boxes: Annotated[int | None, typer.Option(min=1, help="Most regions of an image.")] = None,
    threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Confidence of a region. Default: 0.2 for caffe, 0 for detectron2."),
    ] = None,
    nms: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Overlap that suppresses. Default: 0.3 for caffe, 0.5 for detectron2."),
    ] = None,
    boxes: Annotated[
        Path | None,
        typer.Option(help='Describe these boxes: JSON {"id": [[x1, y1, x2, y2], ...]}, or another store.'),
    ] = None,
    boxes_only: Annotated[bool, typer.Option("--boxes-only", help="Store no features.")] = False,
    precision: Annotated[Precision, typer.Option(help="Of the network.")] = Precision.FP32,
    dtype: Annotated[Dtype, typer.Option(help="Type of the stored features.")] = Dtype.FLOAT32,
    batch_size: Annotated[int, typer.Option(min=1, help="Images of one shape in the network together.")] = 8,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read and resize images.")] = 2,
    part_size: Annotated[int, typer.Option(min=1, help="Images of a part file: what a kill can cost.")] = 256,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Do the I-th of N shares; data-tools join ends what all have done."),
    ] = None,
    engine: Annotated[Engine, typer.Option(help="local: this process; ray: a Ray cluster.")] = Engine.LOCAL,
    ray_address: Annotated[
        str, typer.Option(help="Of a running Ray cluster. Default: one on this machine alone.")
    ] = "",
    device: Device = "auto",
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**32 - 1, help="Of random weights. Default: the configuration's.")
    ] = None,
    on_error: Annotated[
        OnError, typer.Option(help="At an unreadable image: skip and report, or stop.")
    ] = OnError.SKIP,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Discard an existing store and its parts.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Turn a folder of images into an HDF5 store of region features.

    A run that was killed goes on where it was; a store that is complete is left as it is. Images that cannot
    be read are listed in STORE.report.json, and the exit code is then 1.
    """
    started = time.perf_counter()
    bounds = box_bounds(num_boxes, min_boxes, max_boxes)
    share = parse_shard(shard)
    if ray_address and engine is Engine.LOCAL:
        raise UsageError("--ray-address goes with --engine ray")
    options = RunOptions(batch_size, workers, part_size, on_error, share, overwrite)
    require_detectron2()
    from data_tools.devices import resolve_device
    from extract.detector.precision import check_precision
    from extract.run.extraction import extract, store_path
    from extract.run.plan import plan_extraction

    place, store = resolve_device(device), store_path(images, output)
    check_precision(precision, place)
    plan = plan_extraction(
        images,
        id_mapping=id_mapping,
        split=split,
        config=config,
        weights=weights,
        seed=seed,
        rule=selection,
        bounds=bounds,
        threshold=threshold,
        nms=nms,
        boxes=boxes,
        precision=precision,
        dtype=None if boxes_only else dtype,
        options=options,
    )
    summary = extract(plan, store, place, ray_address if engine is Engine.RAY else None)
    summary.seconds["start"] = time.perf_counter() - started - summary.seconds["total"]
    if as_json:
        print_json(summary.as_json())
    else:
        print(summary.as_text())
    if summary.failures:
        raise typer.Exit(1)


def box_bounds(num_boxes: int | None, min_boxes: int | None, max_boxes: int | None) -> tuple[int, int] | None:
    """The minimum and maximum number of regions per image, or None where no option is given.

    Raises:
        UsageError: the options contradict each other.
    """
    if num_boxes is not None:
        if min_boxes is not None or max_boxes is not None:
            raise UsageError("give either --num-boxes or --min-boxes and --max-boxes")
        return num_boxes, num_boxes
    if min_boxes is None and max_boxes is None:
        return None
    if min_boxes is None or max_boxes is None or min_boxes > max_boxes:
        raise UsageError("--min-boxes and --max-boxes go together, the first not above the second")
    return min_boxes, max_boxes


def parse_shard(text: str | None) -> tuple[int, int] | None:
    """`3/8` as (3, 8); `UsageError` where it is not of that form."""
    if text is None:
        return None
    parts = text.split("/")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts) or not 1 <= int(parts[0]) <= int(parts[1]):
        raise UsageError(f"--shard {text}: expected I/N with 1 <= I <= N, for instance 1/8")
    return int(parts[0]), int(parts[1])


@butd_app.command(epilog="Example: butd train --config scenes --data data/scenes --out runs/detector")
def train(
    config: Config,
    data: Annotated[Path, typer.Option(help="Data set with images/ and annotations/train.json.")],
    out: Annotated[Path, typer.Option(help="Run folder to write.")],
    weights: Annotated[
        str | None,
        typer.Option(
            help="What a new run starts from: an ImageNet ResNet or a detector. Default: random weights."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in OUT.")] = False,
    gpus: Annotated[int, typer.Option(min=1, help="A process on each of so many GPUs of this machine.")] = 1,
    device: Device = "auto",
    seed: Annotated[int | None, typer.Option(min=0, max=2**32 - 1, help="Default: the configuration's.")] = None,
    as_json: Json = False,
) -> None:
    """Train a detector: boxes, classes and attributes."""
    require_detectron2()
    from data_tools.devices import resolve_device
    from extract.config import load_config, with_values
    from extract.training.data import load_detection_split
    from extract.training.trainer import INITIAL_WEIGHTS, train_detector, train_on_gpus
    from extract.weights.locating import find_weights

    require_gpus(gpus, device)
    cfg = with_values(load_config(config), device=str(resolve_device(device)), seed=seed)
    start_file = None if weights is None else find_weights(weights)
    if start_file is None and not resume and cfg.MODEL.BACKBONE.FREEZE_AT > 0:
        print(
            f"note: MODEL.BACKBONE.FREEZE_AT {cfg.MODEL.BACKBONE.FREEZE_AT} keeps layers random", file=sys.stderr
        )
    start = time.perf_counter()
    split = load_detection_split(data, "train")
    images = len(split.records)
    if gpus > 1:
        del split  # each process reads it again
        trained = train_on_gpus(gpus, cfg, data, out, resume, start_file)
    else:
        trained = train_detector(cfg, split, out, resume, start_file)
    seconds = round(time.perf_counter() - start, 1)
    initial = read_json(out / INITIAL_WEIGHTS) if (out / INITIAL_WEIGHTS).is_file() else None
    if as_json:
        summary = {"weights": str(trained), "images": images, "seconds": seconds, "gpus": gpus}
        print_json({**summary, "initial_weights": initial})
        return
    if initial is not None:
        print(f"started from {initial['file']} ({initial['kind']}): {initial['placed']} tensors placed, ", end="")
        print(f"{initial['random']} left random")
    print(f"trained on {images} images in {seconds:.0f} s; weights: {trained}")


def require_gpus(count: int, device: str) -> None:
    """Raise `UsageError` where a run on `count` GPUs is impossible."""
    import torch

    if count > 1 and device not in ("auto", "cuda"):
        raise UsageError(f"--gpus {count} goes with --device auto or cuda, not {device}")
    if count > 1 and count > torch.cuda.device_count():
        raise UsageError(f"--gpus {count}: this machine has {torch.cuda.device_count()} GPUs")


@butd_app.command(
    epilog="Example: butd evaluate --weights runs/detector/model_final.pth --config scenes --data data/scenes"
)
def evaluate(
    weights: Annotated[str, typer.Option(help="A weight file.")],
    config: Config,
    data: Annotated[Path, typer.Option(help="Data set with images/ and annotations/SPLIT.json.")],
    split: Annotated[str, typer.Option(help="Which annotations.")] = "test",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Score a detector: average precision of its boxes and attributes, as Anderson et al. count them."""
    require_detectron2()
    from data_tools.devices import resolve_device
    from extract.build import build_detector
    from extract.config import load_config
    from extract.training.data import check_labels, load_detection_split
    from extract.training.evaluation import evaluate_detector
    from extract.weights.locating import find_weights

    cfg = load_config(config)
    annotated = load_detection_split(data, split)
    check_labels(cfg, annotated)
    detector = build_detector(cfg, find_weights(weights), resolve_device(device))
    scores = evaluate_detector(detector, annotated)
    if as_json:
        print_json(scores.as_json())
    else:
        print(f"{split}: {len(annotated.records)} images")
        print(scores.as_text())


@butd_app.command(epilog="Example: butd show holiday.jpg --out holiday.png")
def show(
    image: Annotated[Path, typer.Argument(help="A picture.")],
    out: Annotated[Path, typer.Option(help="The PNG to write.")],
    config: Config = PUBLISHED,
    weights: Annotated[
        str | None, typer.Option(help=f"As for extract-features. Default for {PUBLISHED}: {PUBLISHED_WEIGHTS}.")
    ] = None,
    selection: Annotated[Rule, typer.Option(help="Whose rule chooses regions.")] = Rule.CAFFE,
    num_boxes: Annotated[int, typer.Option(min=1, help="Regions to draw.")] = 10,
    device: Device = "auto",
    seed: Annotated[int | None, typer.Option(min=0, max=2**32 - 1, help="Of random weights.")] = None,
    as_json: Json = False,
) -> None:
    """Draw the regions of a picture with their classes, attributes and scores."""
    require_detectron2()
    from data_tools.devices import resolve_device
    from data_tools.files import replacing
    from extract.build import build_detector
    from extract.config import is_caffe, labels_of, load_config, with_values
    from extract.regions.selection import build_selection
    from extract.run.showing import show_image
    from extract.weights.locating import find_weights_of

    cfg = with_values(load_config(config), seed=seed)
    detector = build_detector(cfg, find_weights_of(config, weights), resolve_device(device))
    rule = build_selection(selection, (num_boxes, num_boxes), inclusive=is_caffe(cfg))
    drawing, regions = show_image(image, detector, rule, labels_of(cfg))
    with replacing(out) as temporary:
        drawing.save(temporary, format="PNG")
    if as_json:
        print_json({"image": str(image), "out": str(out), "regions": regions})
        return
    for region in regions:
        print(f"{region['class_score']:.2f}  {region['attribute']} {region['class']}  at {region['box']}")
    print(out)


extract_features = entry_point(extract_features_app)
butd = entry_point(butd_app)
