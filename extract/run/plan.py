"""What an extraction is: everything that decides about the bytes of its store, resolved and checked."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from detectron2.config import CfgNode

from data_tools.detection.labels import Labels
from data_tools.errors import UsageError
from extract.build import build_detector
from extract.choices import PUBLISHED, Dtype, Precision, Rule, RunOptions
from extract.config import (
    check_detects,
    labels_of,
    load_config,
    provenance_text,
    suppresses_inclusively,
    with_values,
)
from extract.regions.given_boxes import Boxes, load_boxes
from extract.regions.recovery import Recovery
from extract.regions.selection import GivenBoxes, Grid, Selection, build_selection, check_no_selection
from extract.run.batches import BatchRunner
from extract.run.provenance import image_list_sha256, software_versions
from extract.run.sources import Sources, find_sources
from extract.weights.locating import find_weights_of, sha256_of


@dataclass(frozen=True)
class ExtractionPlan:
    """What to extract and how: all that a process needs for it, here or on another machine.

    Attributes:
        cfg: the detector's configuration.
        weights: its weight file; None for a random network.
        selection: the rule that selects regions, or what recovers the boxes of published ones; a `Grid` takes its
            cells.
        sources: the list of images.
        boxes: for each id the given boxes to predict for instead of proposals; None for proposals.
        precision: of the network.
        dtype: of the stored features; None to store boxes without features.
        options: how the run works; they do not change what is stored.
    """

    cfg: CfgNode
    weights: Path | None
    selection: Selection | Recovery
    sources: Sources
    boxes: Boxes | None = None
    precision: Precision = Precision.FP32
    dtype: Dtype | None = Dtype.FLOAT32
    options: RunOptions = field(default_factory=RunOptions)

    def provenance(self) -> dict[str, str]:
        """Everything that decides about the bytes of the store, as text by name."""
        labels = Labels([], []) if isinstance(self.selection, Grid) else labels_of(self.cfg)
        return {
            "config": provenance_text(self.cfg),
            "weights_sha256": sha256_of(self.weights) if self.weights else f"random, seed {max(self.cfg.SEED, 0)}",
            "selection": self.selection.provenance_line(),
            "precision": self.precision.value,
            "feature_dtype": "none, boxes only" if self.dtype is None else self.dtype.value,
            "class_names": "\n".join(labels.classes),
            "attribute_names": "\n".join(labels.attributes),
            "versions": "\n".join(f"{package} {number}" for package, number in software_versions().items()),
            "image_list_sha256": image_list_sha256(self.sources),
        }

    def runner(self, device: torch.device) -> BatchRunner:
        """The network on a device, ready for the images of the list.

        Raises:
            InputError: the weights cannot be read or do not fit the configuration.
        """
        detector = build_detector(self.cfg, self.weights, device, self.precision)
        return BatchRunner(detector, self.selection, self.sources, self.options, self.boxes, self.dtype)


def plan_extraction(
    images: Path,
    *,
    id_mapping: Path | None = None,
    split: Path | None = None,
    config: str = PUBLISHED,
    weights: str | None = None,
    seed: int | None = None,
    rule: Rule = Rule.CAFFE,
    bounds: tuple[int, int] | None = None,
    threshold: float | None = None,
    nms: float | None = None,
    boxes: Path | None = None,
    grid: int | None = None,
    precision: Precision = Precision.FP32,
    dtype: Dtype | None = Dtype.FLOAT32,
    options: RunOptions | None = None,
) -> ExtractionPlan:
    """Resolve what somebody asks for; weights are fetched last, after everything else was checked.

    Args:
        images: see `find_sources`.
        id_mapping: see `find_sources`.
        split: see `find_sources`.
        config: name of a shipped configuration, a YAML file, or a run folder of `butd train`.
        weights: see `find_weights_of`.
        seed: of random weights; by default the configuration's.
        rule: see `build_selection`.
        threshold: see `build_selection`.
        nms: see `build_selection`.
        bounds: minimum and maximum number of regions per image; by default the configuration's.
        boxes: a file of boxes to predict for instead of proposals, see `load_boxes`.
        grid: cells along each side of an image, which are then the regions.
        precision: of convolutions and matrix products.
        dtype: type of the stored features.
        options: see `RunOptions`.

    Raises:
        UsageError: `boxes` or `grid` together with settings of a selection, with each other, or `grid` without
            features; or the configuration has no default weights, or is for grids only.
        InputError: the configuration, the list, the boxes or the weights cannot be read.
    """
    for option, value in (("--boxes", boxes), ("--grid", grid)):
        if value is not None:
            check_no_selection(option, rule, bounds, threshold, nms)
    if grid is not None and (boxes is not None or dtype is None):
        raise UsageError(f"--grid does not go with --boxes{'-only' if boxes is None else ''}")
    cfg = with_values(load_config(config), seed=seed)
    if grid is None:
        check_detects(cfg)
    sources = find_sources(images, id_mapping, split)
    given = None if boxes is None else load_boxes(boxes)
    selection: Selection
    if grid is not None:
        selection = Grid(grid)
    elif boxes is None:
        low, high = bounds or cfg.TEST.REGIONS
        selection = build_selection(rule, (low, high), threshold, nms, suppresses_inclusively(cfg))
    else:
        selection = GivenBoxes(sha256_of(boxes))
    file = find_weights_of(config, weights)
    return ExtractionPlan(cfg, file, selection, sources, given, precision, dtype, options or RunOptions())
