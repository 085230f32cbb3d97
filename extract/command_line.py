"""The commands `extract-features` and `butd`: they parse, call and print.

What imports Detectron2 or torch is imported in the body of the command that needs it, so that `--help` is quick
and a missing Detectron2 is one line.
"""

import importlib.util
import logging
import sys
import time
import warnings
from pathlib import Path
from typing import Annotated

import typer

from data_tools.console import entry_point, print_json
from data_tools.errors import InputError, UsageError
from data_tools.files import read_json
from data_tools.options import Device, Json, Resume, argument, command, make_app, make_group, version_option
from extract import options as given
from extract.choices import (
    BATCH_SIZES,
    MIN_COSINE,
    PART_SIZES,
    PUBLISHED,
    Dtype,
    Engine,
    OnError,
    Precision,
    Rule,
    RunOptions,
    default_workers,
)

extract_features_app = make_app()
butd_app = make_group("butd", "Train, evaluate and show bottom-up-attention detectors; recover published boxes.")


def require_detectron2() -> None:
    """Raise `InputError` that says how to install Detectron2 where it does not import."""
    if importlib.util.find_spec("detectron2") is None:
        raise InputError("Detectron2 is not installed: run python -m extract.install_detectron2")
    # Detectron2's own use of torch, which a user of these commands cannot change
    warnings.filterwarnings("ignore", category=FutureWarning, message=r".*torch\.jit")
    warnings.filterwarnings("ignore", category=UserWarning, message=r"torch\.meshgrid")
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)


@command(
    extract_features_app,
    "extract-features data/coco/images",
    resuming="the same command continues where it stopped",
)
def extract_features_command(
    images: given.Images,
    *,
    id_mapping: given.IdMapping = None,
    ids: given.Ids = None,
    boxes: given.GivenBoxes = None,
    grid: given.GridCells = None,
    max_pixels: given.MaxPixels = RunOptions.max_pixels,
    selection: given.Selection = Rule.CAFFE,
    num_boxes: given.NumBoxes = None,
    min_boxes: given.MinBoxes = None,
    max_boxes: given.MaxBoxes = None,
    threshold: given.Threshold = None,
    nms: given.Nms = None,
    config: given.Config = PUBLISHED,
    weights: given.Weights = None,
    precision: given.NetworkPrecision = Precision.FP32,
    device: Device = "auto",
    seed: given.Seed = None,
    batch_size: given.BatchSize = None,
    workers: given.Workers = None,
    part_size: given.PartSize = None,
    shard: given.Shard = None,
    engine: given.WhichEngine = Engine.LOCAL,
    ray_address: given.RayAddress = "",
    on_error: given.WhenUnreadable = OnError.SKIP,
    out: given.Store = None,
    dtype: given.StoredDtype = Dtype.FLOAT32,
    boxes_only: given.BoxesOnly = False,
    overwrite: given.Overwrite = False,
    as_json: Json = False,
    version: Annotated[bool, version_option("extract-features")] = False,
) -> None:
    """Turn a folder of images into an HDF5 store of region features.

    A run that was stopped is continued by the same command; a complete store is left as it is. Images that cannot
    be read are listed in STORE.report.json, and the exit code is then 1.
    """
    started = time.perf_counter()
    bounds = box_bounds(num_boxes, min_boxes, max_boxes)
    share = parse_shard(shard)
    if ray_address and engine is Engine.LOCAL:
        raise UsageError("--ray-address goes with --engine ray")
    require_detectron2()
    from data_tools.devices import resolve_device
    from data_tools.files import check_writable
    from extract.detector.precision import check_precision
    from extract.run.extraction import extract, store_path
    from extract.run.plan import plan_extraction

    place, store = resolve_device(device), store_path(images, out)
    check_precision(precision, place)
    check_writable(store)
    run = given_or_default(place.type, batch_size, workers, part_size)
    options = RunOptions(*run, on_error, share, overwrite, max_pixels)
    plan = plan_extraction(
        images,
        id_mapping=id_mapping,
        split=ids,
        config=config,
        weights=weights,
        seed=seed,
        rule=selection,
        bounds=bounds,
        threshold=threshold,
        nms=nms,
        boxes=boxes,
        grid=grid,
        precision=precision,
        dtype=None if boxes_only else dtype,
        options=options,
    )
    if plan.sources.ignored:
        print(f"note: {plan.sources.ignored_line()}", file=sys.stderr)
    summary = extract(plan, store, place, ray_address if engine is Engine.RAY else None)
    summary.seconds["start"] = time.perf_counter() - started - summary.seconds["total"]
    if as_json:
        print_json(summary.as_json())
    else:
        print(summary.as_text())
    if summary.failures:
        raise typer.Exit(1)


def given_or_default(
    device: str, batch_size: int | None, workers: int | None, part_size: int | None
) -> tuple[int, int, int]:
    """Batch size, workers and part size; where they are not given those that suit the type of a device."""
    return (
        batch_size or BATCH_SIZES[device],
        default_workers(device) if workers is None else workers,
        part_size or PART_SIZES[device],
    )


def box_bounds(num_boxes: int | None, min_boxes: int | None, max_boxes: int | None) -> tuple[int, int] | None:
    """The minimum and maximum of regions per image, or None where no option gives them.

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
    """`3/8` as (3, 8); `UsageError` where the text is not of this form."""
    if text is None:
        return None
    parts = text.split("/")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts) or not 1 <= int(parts[0]) <= int(parts[1]):
        raise UsageError(f"--shard {text}: expected I/N with 1 <= I <= N, for instance 1/8")
    return int(parts[0]), int(parts[1])


@command(
    butd_app,
    "butd train --config scenes --data data/scenes --out runs/detector",
    resuming="--resume continues from the last checkpoint",
)
def train(
    *,
    data: given.Data,
    config: given.Config,
    weights: given.InitialWeights = None,
    resume: Resume = False,
    gpus: given.Gpus = 1,
    device: Device = "auto",
    seed: given.TrainSeed = None,
    out: given.RunFolder,
    as_json: Json = False,
) -> None:
    """Train a detector: boxes, classes and attributes.

    Their numbers and names are those of DATA/annotations/train.json, whatever the configuration says.
    """
    require_detectron2()
    from data_tools.devices import resolve_device
    from extract.config import load_config, with_labels, with_values
    from extract.training.data import load_detection_split, load_validation_split
    from extract.training.trainer import INITIAL_WEIGHTS, train_detector, train_on_gpus
    from extract.weights.locating import find_weights

    require_gpus(gpus, device)
    cfg = with_values(load_config(config), device=str(resolve_device(device)), seed=seed)
    start_file = None if weights is None else find_weights(weights)
    if start_file is None and not resume and cfg.MODEL.BACKBONE.FREEZE_AT > 0:
        print(
            f"note: MODEL.BACKBONE.FREEZE_AT {cfg.MODEL.BACKBONE.FREEZE_AT} freezes layers with random weights",
            file=sys.stderr,
        )
    start = time.perf_counter()
    split = load_detection_split(data, "train")
    cfg = with_labels(cfg, split.labels)
    for note in split.notes:
        print(f"note: train: {note}", file=sys.stderr)
    images = len(split.records)
    if gpus > 1:
        del split  # each process reads it again
        trained = train_on_gpus(gpus, cfg, data, out, resume, start_file)
    else:
        trained = train_detector(cfg, split, out, resume, start_file, load_validation_split(data))
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
    """Raise `UsageError` where this machine and `--device` do not allow a run on `count` GPUs."""
    import torch

    if count > 1 and device not in ("auto", "cuda"):
        raise UsageError(f"--gpus {count} goes with --device auto or cuda, not {device}")
    if count > 1 and count > torch.cuda.device_count():
        raise UsageError(f"--gpus {count}: this machine has {torch.cuda.device_count()} GPUs")


@command(butd_app, "butd evaluate --config runs/detector --data data/scenes")
def evaluate(
    *,
    data: given.Data,
    split: given.SplitName = "test",
    config: given.Config,
    weights: given.Weights = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure a detector: average precision of boxes and attributes, counted as by Anderson et al. (2018)."""
    require_detectron2()
    from data_tools.devices import resolve_device
    from extract.build import build_detector
    from extract.config import check_detects, load_config
    from extract.training.data import check_names, load_detection_split
    from extract.training.evaluation import evaluate_detector
    from extract.weights.locating import find_weights_of

    cfg = load_config(config)
    check_detects(cfg)
    annotated = load_detection_split(data, split)
    check_names(cfg, annotated)
    for note in annotated.notes:
        print(f"note: {split}: {note}", file=sys.stderr)
    detector = build_detector(cfg, find_weights_of(config, weights), resolve_device(device))
    scores = evaluate_detector(detector, annotated)
    if as_json:
        print_json(scores.as_json())
    else:
        print(f"{split}: {len(annotated.records)} images")
        print(scores.as_text())


@command(butd_app, "butd show holiday.jpg --out holiday.png")
def show(
    image: Annotated[Path, argument("IMAGE", "Image file to show.")],
    *,
    selection: given.Selection = Rule.CAFFE,
    num_boxes: given.DrawnBoxes = 10,
    config: given.Config = PUBLISHED,
    weights: given.Weights = None,
    device: Device = "auto",
    seed: given.Seed = None,
    out: given.Picture,
    as_json: Json = False,
) -> None:
    """Draw the regions of an image with their classes, attributes and scores."""
    require_detectron2()
    from data_tools.devices import resolve_device
    from data_tools.files import replacing
    from extract.build import build_detector
    from extract.config import check_detects, labels_of, load_config, suppresses_inclusively, with_values
    from extract.regions.selection import build_selection
    from extract.run.showing import name_of, show_image
    from extract.weights.locating import find_weights_of

    cfg = with_values(load_config(config), seed=seed)
    check_detects(cfg)
    detector = build_detector(cfg, find_weights_of(config, weights), resolve_device(device))
    rule = build_selection(selection, (num_boxes, num_boxes), inclusive=suppresses_inclusively(cfg))
    drawing, regions = show_image(image, detector, rule, labels_of(cfg))
    with replacing(out) as temporary:
        drawing.save(temporary, format="PNG")
    if as_json:
        print_json({"image": str(image), "out": str(out), "regions": regions})
        return
    for region in regions:
        print(f"{region['class_score']:.2f}  {name_of(region)}  at {region['box']}")
    print(out)


@command(
    butd_app,
    "butd recover-boxes data/coco/precomp --images data/coco/images --out data/coco/recovered.h5",
    resuming="the same command continues where it stopped",
)
def recover_boxes(
    precomp: given.Precomp,
    *,
    images: given.Pictures,
    split: given.PublishedSplit = None,
    id_mapping: given.PicturesMapping = None,
    max_pixels: given.MaxPixels = RunOptions.max_pixels,
    min_cosine: given.MinCosine = MIN_COSINE,
    config: given.Config = PUBLISHED,
    weights: given.Weights = None,
    precision: given.NetworkPrecision = Precision.FP32,
    device: Device = "auto",
    seed: given.Seed = None,
    batch_size: given.BatchSize = None,
    workers: given.Workers = None,
    part_size: given.PartSize = None,
    shard: given.Shard = None,
    on_error: given.WhenUnreadable = OnError.SKIP,
    out: given.RecoveredStore,
    overwrite: given.Overwrite = False,
    as_json: Json = False,
) -> None:
    """Find the boxes of published features that come without, as SCAN's arrays do.

    In each image the detector's proposals are matched with the published rows by cosine, and the store that is
    written has the published features, unchanged, with the boxes of their proposals. A row whose cosine is too
    small has no box. An interrupted run is continued by the same command. The exit code is 1 if an image could not
    be read, or if no box was found at all.
    """
    share = parse_shard(shard)
    require_detectron2()
    from data_tools.devices import resolve_device
    from extract.detector.precision import check_precision
    from extract.run.extraction import extract, store_path
    from extract.run.recovery import Recovered, plan_recovery

    place, store = resolve_device(device), store_path(images, out)
    check_precision(precision, place)
    run = given_or_default(place.type, batch_size, workers, part_size)
    plan = plan_recovery(
        precomp,
        images,
        split=split,
        min_cosine=min_cosine,
        id_mapping=id_mapping,
        config=config,
        weights=weights,
        seed=seed,
        precision=precision,
        options=RunOptions(*run, on_error, share, overwrite, max_pixels),
    )
    if precomp.resolve() == store.resolve():
        raise UsageError(f"{out}: holds the published features; fix: give the store another name")
    if plan.sources.ignored:
        print(f"note: {plan.sources.ignored_line()}", file=sys.stderr)
    summary = extract(plan, store, place)
    found = None if summary.parts_missing is not None else Recovered.of_store(store)
    if as_json:
        print_json({**summary.as_json(), "boxes": found and found.as_json()})
    else:
        print(summary.as_text(), *([found.as_text()] if found else []), sep="\n")
    if summary.failures or (found and not found.recovered):
        raise typer.Exit(1)


extract_features = entry_point(extract_features_app)
butd = entry_point(butd_app)
