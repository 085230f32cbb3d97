"""The rules that select an image's regions among a detector's proposals.

Shapes: P proposals of one image, C object classes (background left out), k regions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from data_tools.errors import UsageError
from extract.choices import MAX_CELLS, Rule
from extract.detector.boxes import nms
from extract.detector.proposals import Proposals
from extract.regions.nms import per_class_nms


@dataclass(frozen=True)
class Regions:
    """The selected ones: `rows` (k,) int64 positions among the proposals, `boxes` (k, 4) to be stored."""

    rows: torch.Tensor
    boxes: torch.Tensor


class Selection(Protocol):
    """A rule: proposals with their predictions in, regions out."""

    @property
    def min_boxes(self) -> int:
        """The number of regions that an image should have at least."""

    def __call__(self, proposals: Proposals) -> Regions:
        """Select the regions of one image."""

    def of_batch(self, batch: Sequence[Proposals]) -> list[Regions]:
        """Select the regions of each of several images."""

    def provenance_line(self) -> str:
        """The rule and its settings in one line, for a store's provenance."""


@dataclass(frozen=True)
class CaffeSelection:
    """Anderson et al.'s rule (`generate_tsv.py`): per-class suppression, then the confident proposals.

    Attributes:
        min_boxes, max_boxes: bounds on the number of regions; equal for a fixed number.
        threshold: the confidence from which a proposal is kept.
        nms: the IoU at which a less probable box is suppressed.
        inclusive: which box arithmetic, see extract/detector/boxes.py.
    """

    min_boxes: int
    max_boxes: int
    threshold: float = 0.2
    nms: float = 0.3
    inclusive: bool = True

    def __post_init__(self) -> None:
        _check_bounds(self.min_boxes, self.max_boxes)

    def __call__(self, proposals: Proposals) -> Regions:
        """The regions of an image; their boxes are the proposals, not regressed.

        A proposal's confidence is its best probability among the classes in which it survived. Where fewer than
        `min_boxes` are confident, the `min_boxes` best are selected, and where more than `max_boxes` are, the
        `max_boxes` best, in order of confidence; otherwise the confident ones in the proposals' order. Equal
        confidences keep the proposals' order.
        """
        return self.of_batch([proposals])[0]

    def of_batch(self, batch: Sequence[Proposals]) -> list[Regions]:
        """The regions of each of several images, with as many GPU operations as for one."""
        probabilities = [proposals.class_probabilities for proposals in batch]
        survives = per_class_nms([proposals.boxes for proposals in batch], probabilities, self.nms, self.inclusive)
        chosen = []
        for proposals, survivors in zip(batch, survives, strict=True):
            rows = self.choose(torch.where(survivors, proposals.class_probabilities, 0.0).amax(dim=1))
            chosen.append(Regions(rows, proposals.boxes[rows]))
        return chosen

    def choose(self, confidence: torch.Tensor) -> torch.Tensor:
        """(k,) positions by (P,) confidences."""
        confident = (confidence >= self.threshold).nonzero().flatten()
        if self.min_boxes <= len(confident) <= self.max_boxes:
            return confident
        wanted = self.min_boxes if len(confident) < self.min_boxes else self.max_boxes
        return torch.argsort(confidence, descending=True, stable=True)[:wanted]

    def provenance_line(self) -> str:
        """The rule and its settings in one line, for a store's provenance."""
        return _line(Rule.CAFFE, self)


@dataclass(frozen=True)
class SweepSelection:
    """airsplay's and Hugging Face's rule: one suppression for all classes, loosened until enough survive.

    Attributes:
        min_boxes, max_boxes: bounds on the number of regions; equal for a fixed number.
        threshold: regions beyond `min_boxes` have at least this class probability.
        nms: the IoU threshold that is tried first; it is loosened by 0.1 at a time.
        inclusive: which box arithmetic, see extract/detector/boxes.py.
    """

    min_boxes: int
    max_boxes: int
    threshold: float = 0.0
    nms: float = 0.5
    inclusive: bool = False

    def __post_init__(self) -> None:
        _check_bounds(self.min_boxes, self.max_boxes)

    def __call__(self, proposals: Proposals) -> Regions:
        """The regions of an image by class probability, best first; their boxes are the regressed ones."""
        scores = proposals.class_probabilities.amax(dim=1)
        kept = self._sweep(proposals.regressed_boxes, scores)
        confident = int((scores[kept] >= self.threshold).sum())
        rows = kept[: min(max(confident, self.min_boxes), self.max_boxes)]
        return Regions(rows, proposals.regressed_boxes[rows])

    def of_batch(self, batch: Sequence[Proposals]) -> list[Regions]:
        """The regions of each of several images."""
        return [self(proposals) for proposals in batch]

    def _sweep(self, boxes: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Positions of the survivors at the lowest IoU threshold that leaves `min_boxes`, best first."""
        for step in range(10):
            threshold = self.nms + 0.1 * step
            if threshold >= 1.0:
                break
            kept = nms(boxes, scores, threshold, self.inclusive)
            if len(kept) >= self.min_boxes:
                return kept
        return torch.argsort(scores, descending=True, stable=True)

    def provenance_line(self) -> str:
        """The rule and its settings in one line, for a store's provenance."""
        return _line(Rule.DETECTRON2, self)


class _All:
    """Every proposal, in the given order."""

    def __call__(self, proposals: Proposals) -> Regions:
        """All of them."""
        return Regions(torch.arange(len(proposals.boxes), device=proposals.boxes.device), proposals.boxes)

    def of_batch(self, batch: Sequence[Proposals]) -> list[Regions]:
        """The regions of each of several images."""
        return [self(proposals) for proposals in batch]


@dataclass(frozen=True)
class GivenBoxes(_All):
    """Every given box, in the given order.

    Attributes:
        sha256: of the file of boxes, in hexadecimal.
    """

    sha256: str
    min_boxes: int = 1

    def provenance_line(self) -> str:
        """The rule and its settings in one line, for a store's provenance."""
        return f"given boxes, file {self.sha256}"


@dataclass(frozen=True)
class Grid(_All):
    """Every cell of a grid over the image, row by row.

    Attributes:
        cells: along each side.

    Raises:
        ValueError: `cells` is not 1 to `MAX_CELLS`.
    """

    cells: int

    def __post_init__(self) -> None:
        if not 1 <= self.cells <= MAX_CELLS:
            raise ValueError(f"need a grid of 1 to {MAX_CELLS} cells along each side, got {self.cells}")

    @property
    def min_boxes(self) -> int:
        """The number of cells."""
        return self.cells**2

    def provenance_line(self) -> str:
        """The rule and its settings in one line, for a store's provenance."""
        return f"grid {self.cells}"


_KINDS: dict[Rule, type[CaffeSelection | SweepSelection]] = {
    Rule.CAFFE: CaffeSelection,
    Rule.DETECTRON2: SweepSelection,
}


def build_selection(
    rule: Rule,
    bounds: tuple[int, int],
    threshold: float | None = None,
    nms: float | None = None,
    inclusive: bool = True,
) -> CaffeSelection | SweepSelection:
    """The selection of a rule.

    >>> build_selection(Rule.CAFFE, (10, 100), nms=0.4)
    CaffeSelection(min_boxes=10, max_boxes=100, threshold=0.2, nms=0.4, inclusive=True)

    Args:
        rule: which.
        bounds: minimum and maximum number of regions per image.
        threshold: minimum confidence of a region; None for the rule's default.
        nms: IoU that suppresses; None for the rule's default.
        inclusive: which box arithmetic, see extract/detector/boxes.py.

    Raises:
        ValueError: there is no such rule, or the bounds are not 1 <= minimum <= maximum.
    """
    kind = _KINDS[Rule(rule)]
    return kind(
        *bounds,
        threshold=kind.threshold if threshold is None else threshold,
        nms=kind.nms if nms is None else nms,
        inclusive=inclusive,
    )


def check_no_selection(
    option: str, rule: Rule, bounds: tuple[int, int] | None, threshold: float | None, nms: float | None
) -> None:
    """Raise `UsageError` where an option that gives all regions comes with settings of a selection."""
    if (rule, bounds, threshold, nms) != (Rule.CAFFE, None, None, None):
        raise UsageError(
            f"{option} gives all regions: leave out the options of the selection, of counts and of NMS"
        )


def _check_bounds(min_boxes: int, max_boxes: int) -> None:
    if not 1 <= min_boxes <= max_boxes:
        raise ValueError(f"need 1 <= min_boxes <= max_boxes, got {min_boxes} and {max_boxes}")


def _line(rule: Rule, selection: CaffeSelection | SweepSelection) -> str:
    arithmetic = "inclusive" if selection.inclusive else "continuous"
    return (
        f"{rule} min={selection.min_boxes} max={selection.max_boxes} threshold={selection.threshold} "
        f"nms={selection.nms} boxes={arithmetic}"
    )
