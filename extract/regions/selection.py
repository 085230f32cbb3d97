"""Which of a detector's proposals become an image's regions.

Shapes: P proposals of one image, C object classes (background left out), k regions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from extract.detector.boxes import nms
from extract.detector.proposals import Proposals
from extract.regions.nms import per_class_nms

RULES = ("caffe", "detectron2")


@dataclass(frozen=True)
class Regions:
    """The chosen ones: `rows` (k,) int64 positions among the proposals, `boxes` (k, 4) to be stored."""

    rows: torch.Tensor
    boxes: torch.Tensor


class Selection(Protocol):
    """A rule: described proposals in, regions out."""

    @property
    def min_boxes(self) -> int:
        """The fewest regions that an image should have."""

    def __call__(self, proposals: Proposals) -> Regions:
        """Choose."""

    def of_batch(self, batch: Sequence[Proposals]) -> list[Regions]:
        """Choose in each of several images."""

    def describe(self) -> str:
        """The rule in a line, for a store's provenance."""


@dataclass(frozen=True)
class CaffeSelection:
    """Anderson et al.'s rule (`generate_tsv.py`): per-class suppression, then the confident proposals.

    Attributes:
        min_boxes, max_boxes: bounds on the number of regions; equal for a fixed number.
        threshold: the confidence from which a proposal is kept.
        nms: the overlap at which a less probable box is suppressed.
        inclusive: whose box arithmetic, see extract/detector/boxes.py.
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

        A proposal's confidence is its best probability among the classes in which it survived. Fewer
        confident ones than `min_boxes`: the `min_boxes` best; more than `max_boxes`: the `max_boxes` best, in
        order of confidence; otherwise in the proposals' order. Equal confidences keep the proposals' order.
        """
        return self.of_batch([proposals])[0]

    def of_batch(self, batch: Sequence[Proposals]) -> list[Regions]:
        """The regions of each of several images: a GPU starts as many operations for all as for one."""
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

    def describe(self) -> str:
        """The rule in a line, for a store's provenance."""
        return _line("caffe", self)


@dataclass(frozen=True)
class SweepSelection:
    """airsplay's and Hugging Face's rule: one suppression for all classes, loosened until enough survive.

    Attributes:
        min_boxes, max_boxes: bounds on the number of regions; equal for a fixed number.
        threshold: regions beyond `min_boxes` have at least this class probability.
        nms: the overlap at which suppression begins; it is loosened by 0.1 at a time.
        inclusive: whose box arithmetic, see extract/detector/boxes.py.
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
        """Positions of the survivors at the tightest overlap that leaves `min_boxes`, best first."""
        for step in range(10):
            threshold = self.nms + 0.1 * step
            if threshold >= 1.0:
                break
            kept = nms(boxes, scores, threshold, self.inclusive)
            if len(kept) >= self.min_boxes:
                return kept
        return torch.argsort(scores, descending=True, stable=True)

    def describe(self) -> str:
        """The rule in a line, for a store's provenance."""
        return _line("detectron2", self)


@dataclass(frozen=True)
class GivenBoxes:
    """Every box that was given, in its order.

    Attributes:
        sha256: of the file they come from.
    """

    sha256: str
    min_boxes: int = 1

    def __call__(self, proposals: Proposals) -> Regions:
        """All of them."""
        return Regions(torch.arange(len(proposals.boxes), device=proposals.boxes.device), proposals.boxes)

    def of_batch(self, batch: Sequence[Proposals]) -> list[Regions]:
        """The regions of each of several images."""
        return [self(proposals) for proposals in batch]

    def describe(self) -> str:
        """The rule in a line, for a store's provenance."""
        return f"given boxes, file {self.sha256}"


def build_selection(
    rule: str, bounds: tuple[int, int], threshold: float | None, overlap: float | None, inclusive: bool
) -> Selection:
    """The rule of one of `RULES`; None leaves its own threshold or overlap."""
    kind = CaffeSelection if rule == "caffe" else SweepSelection
    return kind(
        *bounds,
        threshold=kind.threshold if threshold is None else threshold,
        nms=kind.nms if overlap is None else overlap,
        inclusive=inclusive,
    )


def _check_bounds(fewest: int, most: int) -> None:
    if not 1 <= fewest <= most:
        raise ValueError(f"need 1 <= min_boxes <= max_boxes, got {fewest} and {most}")


def _line(rule: str, selection: CaffeSelection | SweepSelection) -> str:
    arithmetic = "inclusive" if selection.inclusive else "continuous"
    return (
        f"{rule} min={selection.min_boxes} max={selection.max_boxes} threshold={selection.threshold} "
        f"nms={selection.nms} boxes={arithmetic}"
    )
