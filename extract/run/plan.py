"""From a folder of images to its feature store: what `extract-features` does, for Python programs too."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from detectron2.config import CfgNode

from data_tools.devices import resolve_device
from data_tools.errors import UsageError
from data_tools.store.report import report_path
from extract.build import build_detector, build_network
from extract.choices import DEFAULT_WEIGHTS, OTHER_WEIGHTS
from extract.config import is_caffe, load_config, with_values
from extract.detector.precision import Precision
from extract.regions.given_boxes import Boxes, load_boxes
from extract.regions.selection import GivenBoxes, Selection, build_selection
from extract.run.batches import BatchRunner
from extract.run.extraction import Engine, Extraction, LocalEngine
from extract.run.provenance import run_provenance
from extract.run.sources import Sources, find_sources
from extract.run.summary import Options, Summary
from extract.weights.locating import find_weights, sha256_of

RANDOM = "random"  # the weights of a network that nobody trained, for comparison


@dataclass(frozen=True)
class Request:
    """What somebody asks of `extract_folder`; the first field is all that is needed.

    Attributes:
        images, id_mapping, split: see `find_sources`.
        output: the store; by default `IMAGES/../precomp/features.h5`.
        config: a shipped configuration's name, or a YAML file.
        weights: see `find_weights`; `random` for none; by default those of a published configuration.
        rule: one of `selection.RULES`.
        bounds: fewest and most regions of an image; by default the configuration's.
        threshold, nms: of the selection; by default the rule's.
        boxes: a file of boxes to describe instead, see `load_boxes`.
        precision: of the network.
        options: how the run works.
        device: see `resolve_device`.
        seed: of random weights; by default the configuration's.
        overwrite: discard an existing store and its parts, once all else is known to be right.
        ray_address: spread the work over a Ray cluster; an empty string starts one here.
    """

    images: Path
    output: Path | None = None
    id_mapping: Path | None = None
    split: Path | None = None
    config: str = "butd_r101_caffe"
    weights: str | None = None
    rule: str = "caffe"
    bounds: tuple[int, int] | None = None
    threshold: float | None = None
    nms: float | None = None
    boxes: Path | None = None
    precision: Precision = Precision.FP32
    options: Options = field(default_factory=Options)
    device: str = "auto"
    seed: int | None = None
    overwrite: bool = False
    ray_address: str | None = None


@dataclass(frozen=True)
class Worker:
    """All that a process, here or on another machine, needs to describe images of the list."""

    cfg: CfgNode
    weights: Path | None
    precision: Precision
    selection: Selection
    sources: Sources
    options: Options
    boxes: Boxes | None

    def runner(self, device: str) -> BatchRunner:
        """The network, on a device."""
        detector = build_detector(self.cfg, self.weights, resolve_device(device), self.precision)
        return BatchRunner(
            detector, self.selection, self.sources.folder, self.sources.images, self.options, self.boxes
        )


def extract_folder(request: Request) -> Summary:
    """Write the feature store of a folder of images, or what is missing of it.

    Raises:
        UsageError: the configuration has no default weights, options contradict each other, or the device
            cannot compute so.
        InputError: something given cannot be read, or the store was made otherwise; see `Extraction.run`.
    """
    _check_options(request)
    device = resolve_device(request.device)
    request.precision.require(device)
    cfg = with_values(load_config(request.config), seed=request.seed)
    sources = find_sources(request.images, request.id_mapping, request.split)
    store = _store(request)
    weights = resolve_weights(request.config, request.weights)
    boxes = load_boxes(request.boxes) if request.boxes else None
    worker = Worker(cfg, weights, request.precision, _selection(request, cfg), sources, request.options, boxes)
    provenance = run_provenance(cfg, weights, worker.selection, worker.precision, worker.options, sources)
    run = Extraction(
        store,
        provenance,
        {"device": device.type},  # another type of device sums in another order, which would show
        len(sources.images),
        request.options.part_size,
        worker.selection.min_boxes,
        request.options.shard,
    )
    engine = _engine(request, worker, str(device))
    if request.overwrite:
        run.parts.discard()
        store.unlink(missing_ok=True)
        report_path(store).unlink(missing_ok=True)
    return run.run(engine)


def _check_options(request: Request) -> None:
    settings = (request.bounds, request.threshold, request.nms, request.rule)
    if request.boxes is not None and settings != (None, None, None, "caffe"):
        raise UsageError("--boxes gives every box that is described: no selection, counts or NMS beside it")
    if request.overwrite and request.options.shard:
        raise UsageError("--overwrite would discard other shards' parts: remove the store and its parts first")


def _store(request: Request) -> Path:
    store = request.output or request.images.resolve().parent / "precomp" / "features.h5"
    if not store.name or store.is_dir():
        raise UsageError(f"--out {store}: expected a file")
    return store


def resolve_weights(config: str, spec: str | None) -> Path | None:
    """The weight file of a configuration; None for a random network.

    Raises:
        UsageError: nothing is given and the configuration has no default; the message says what to give.
        InputError: see `find_weights`.
    """
    spec = spec or DEFAULT_WEIGHTS.get(config)
    if spec is None:
        files = OTHER_WEIGHTS.get(config)
        raise UsageError(f"--config {config} needs --weights FILE" + (f": {files}" if files else ""))
    return None if spec == RANDOM else find_weights(spec)


def _selection(request: Request, cfg: CfgNode) -> Selection:
    if request.boxes is not None:
        return GivenBoxes(sha256_of(request.boxes))
    fewest, most = request.bounds or cfg.TEST.REGIONS
    return build_selection(request.rule, (fewest, most), request.threshold, request.nms, is_caffe(cfg))


def _engine(request: Request, worker: Worker, device: str) -> Engine:
    if request.ray_address is None:
        return LocalEngine(worker.runner(device))
    from extract.run.ray_engine import RayEngine

    build_network(worker.cfg, worker.weights, torch.device("cpu"))  # weights that do not fit are heard of here
    return RayEngine(worker, device, request.ray_address)
