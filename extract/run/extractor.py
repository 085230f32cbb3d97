"""The regions of pictures from Python, without a store.

Shapes: K regions of one picture, D numbers per feature.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
from PIL import Image

from data_tools.detection.labels import Labels
from data_tools.devices import resolve_device
from data_tools.errors import InputError
from data_tools.images.decoding import UnreadableImageError, decode_image, to_rgb
from data_tools.store.schema import REGION_COLUMNS, Block
from extract.build import build_detector
from extract.choices import PUBLISHED, OnError, Precision, Rule, RunOptions
from extract.config import check_detects, labels_of, load_config, suppresses_inclusively, with_values
from extract.detector.detector import Detector
from extract.detector.precision import check_precision
from extract.regions.selection import Grid, Selection, build_selection, check_no_selection
from extract.run.batches import BatchRunner
from extract.run.sources import SourceImage, Sources
from extract.weights.locating import find_weights_of

Picture = str | Path | Image.Image | np.ndarray
"""A file, a PIL image, or an array (height, width, 3) uint8 in RGB."""

PREDICTED = {"class_ids", "class_scores", "attribute_ids", "attribute_scores"}  # columns that a grid lacks


@dataclass(frozen=True)
class ImageRegions:
    """The regions of one picture.

    Attributes:
        boxes: (K, 4) float32 x1 y1 x2 y2 in pixels of the upright picture.
        features: (K, D) float32.
        image_size: height and width of the picture.
        class_ids, attribute_ids: (K,) int32, the most probable class and attribute.
        class_scores, attribute_scores: (K,) float32, their probabilities.
        class_names, attribute_names: K names each; empty where the network's labels are not known.

    Of the cells of a grid no class or attribute is predicted: their ids, scores and names are empty.
    """

    boxes: np.ndarray
    features: np.ndarray
    image_size: tuple[int, int]
    class_ids: np.ndarray
    class_scores: np.ndarray
    class_names: list[str]
    attribute_ids: np.ndarray
    attribute_scores: np.ndarray
    attribute_names: list[str]

    def __len__(self) -> int:
        """K."""
        return len(self.boxes)


class Extractor:
    """Finds the regions of pictures with a detector; on a CPU the same bytes as `extract-features` stores.

    >>> extractor = Extractor.from_pretrained("scenes", weights="random", device="cpu")
    >>> regions = extractor(np.zeros((60, 80, 3), np.uint8))
    >>> regions.boxes.shape, regions.features.shape, regions.image_size
    ((36, 4), (36, 512), (60, 80))

    Args:
        detector: gives proposals with their predictions.
        selection: selects regions among them; a `Grid` takes its cells instead.
        labels: names of the classes and attributes.
        batch_size: pictures of one shape that go through the network together.
    """

    def __init__(self, detector: Detector, selection: Selection, labels: Labels, batch_size: int = 8) -> None:
        self.detector, self.selection, self.labels = detector, selection, labels
        self._options = RunOptions(batch_size=batch_size, workers=0, on_error=OnError.FAIL)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = PUBLISHED,
        *,
        weights: str | None = None,
        num_boxes: int | tuple[int, int] | None = None,
        selection: str = Rule.CAFFE,
        threshold: float | None = None,
        nms: float | None = None,
        grid: int | None = None,
        precision: str = Precision.FP32,
        device: str = "auto",
        batch_size: int = 8,
        seed: int | None = None,
    ) -> Self:
        """The detector of a shipped configuration, of a YAML file, or of a run folder of `butd train`.

        Args:
            name: for instance `butd_r101_caffe`, or `runs/detector`.
            weights: a file, a URL, a Hugging Face repository OWNER/NAME or hf://OWNER/NAME@REVISION/FILE, or
                `random`; None takes those of the configuration or of the run folder.
            num_boxes: of each picture: a number, or the smallest and the largest; None takes the configuration's.
            selection: `caffe` or `detectron2`, the published rule that selects regions.
            threshold: confidence from which a proposal is kept; None takes the rule's.
            nms: IoU at which a box is suppressed; None takes the rule's.
            grid: cells along each side of a picture, which are then its regions, row by row.
            precision: `fp32`, `tf32`, `bf16` or `fp16`.
            device: auto, cpu, cuda or cuda:N.
            batch_size: pictures of one shape that go through the network together.
            seed: of random weights.

        Raises:
            InputError: the configuration or the weights cannot be read, fetched or matched.
            UsageError: this machine has no such device or precision, the configuration needs `weights` or `grid`,
                or `grid` comes with settings of a selection.
            ValueError: there is no such precision, selection or grid.
        """
        where, arithmetic = resolve_device(device), Precision(precision)
        check_precision(arithmetic, where)
        config = str(name)
        cfg = with_values(load_config(config), seed=seed)
        bounds = (num_boxes, num_boxes) if isinstance(num_boxes, int) else num_boxes
        rule: Selection
        if grid is not None:
            check_no_selection("grid", Rule(selection), bounds, threshold, nms)
            rule = Grid(grid)
        else:
            check_detects(cfg)
            low, high = bounds or cfg.TEST.REGIONS
            rule = build_selection(Rule(selection), (low, high), threshold, nms, suppresses_inclusively(cfg))
        detector = build_detector(cfg, find_weights_of(config, weights), where, arithmetic)
        return cls(detector, rule, labels_of(cfg), batch_size)

    @overload
    def __call__(self, pictures: Picture) -> ImageRegions: ...
    @overload  # a text is a sequence of texts too, for type checkers
    def __call__(self, pictures: list[Any] | tuple[Any, ...]) -> list[ImageRegions]: ...
    def __call__(self, pictures: Picture | list[Any] | tuple[Any, ...]) -> ImageRegions | list[ImageRegions]:
        """The regions of a picture, or of each of several.

        Args:
            pictures: one, or a list of them; see `Picture`.

        Raises:
            InputError: a picture cannot be read, or an array has another shape or type; the message names it.
        """
        if isinstance(pictures, str | Path | Image.Image | np.ndarray):
            return self._regions([pictures])[0]
        return self._regions(pictures)

    def _regions(self, pictures: Sequence[Picture]) -> list[ImageRegions]:
        images = [
            SourceImage(str(number), _name(picture, number), pixels=_pixels(picture, number))
            for number, picture in enumerate(pictures)
        ]
        runner = BatchRunner(self.detector, self.selection, Sources(Path(), images), self._options)
        [block] = runner.blocks([range(len(images))], lambda count: None)
        ends = np.cumsum(block.counts)
        return [self._of_image(block, n, slice(end - block.counts[n], end)) for n, end in enumerate(ends)]

    def _of_image(self, block: Block, number: int, rows: slice) -> ImageRegions:
        assert block.image_sizes is not None
        own = {name: np.ascontiguousarray(column[rows]) for name, column in block.regions.items()}
        for name in PREDICTED - own.keys():  # of a grid
            own[name] = np.empty(0, REGION_COLUMNS[name][0])
        height, width = block.image_sizes[number].tolist()
        classes, attributes = self.labels.classes, self.labels.attributes
        return ImageRegions(
            **own,
            image_size=(height, width),
            class_names=[classes[label] for label in own["class_ids"]] if classes else [],
            attribute_names=[attributes[label] for label in own["attribute_ids"]] if attributes else [],
        )


def _name(picture: Picture, number: int) -> str:
    return str(picture) if isinstance(picture, str | Path) else f"picture {number}"


def _pixels(picture: Picture, number: int) -> np.ndarray:
    """The picture as (height, width, 3) uint8 in RGB, upright."""
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
            found = f"{picture.dtype} {picture.shape}"
            raise InputError(f"picture {number}: expected an array (height, width, 3) uint8 in RGB, found {found}")
        return picture
    try:
        return to_rgb(picture) if isinstance(picture, Image.Image) else decode_image(Path(picture))
    except UnreadableImageError as error:
        raise InputError(f"{_name(picture, number)}: cannot be read: {error}") from None
