"""Which of a detector's proposals become an image's regions.

Shapes: P proposals of one image, C object classes (background left out), k regions.
"""

from dataclasses import dataclass
from typing import Protocol

import torch

from extract.box_arithmetic import nms, overlaps
from extract.proposals import Proposals

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

    def describe(self) -> str:
        """The rule in a line, for a store's provenance."""


@dataclass(frozen=True)
class CaffeSelection:
    """Anderson et al.'s rule (`generate_tsv.py`): per-class suppression, then the confident proposals.

    Attributes:
        min_boxes, max_boxes: bounds on the number of regions; equal for a fixed number.
        threshold: the confidence from which a proposal is kept.
        nms: the overlap at which a less probable box is suppressed.
        inclusive: whose box arithmetic, see extract/box_arithmetic.py.
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
        rows = self.choose(self.confidence(proposals.boxes, proposals.class_probabilities))
        return Regions(rows, proposals.boxes[rows])

    def choose(self, confidence: torch.Tensor) -> torch.Tensor:
        """(k,) positions by (P,) confidences."""
        confident = (confidence >= self.threshold).nonzero().flatten()
        if self.min_boxes <= len(confident) <= self.max_boxes:
            return confident
        wanted = self.min_boxes if len(confident) < self.min_boxes else self.max_boxes
        return torch.argsort(confidence, descending=True, stable=True)[:wanted]

    def confidence(self, boxes: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
        """(P,) best probability of each proposal among the classes in which it survived; 0 where in none."""
        survives = per_class_nms(boxes, probabilities, self.nms, self.inclusive)
        return torch.where(survives, probabilities, 0.0).amax(dim=1)

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
        inclusive: whose box arithmetic, see extract/box_arithmetic.py.
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


def per_class_nms(
    boxes: torch.Tensor, probabilities: torch.Tensor, threshold: float, inclusive: bool
) -> torch.Tensor:
    """(P, C) whether each of (P, 4) boxes survives greedy suppression in each class of (P, C) probabilities.

    All classes share the boxes, so one overlap matrix serves them all, and they advance together: at step r
    each class looks at its r-th most probable proposal and, if that still stands, suppresses what overlaps
    it. P steps in place of C separate suppressions, on sets of proposals packed into the bits of integers.
    """
    count, classes = probabilities.shape
    suppress = overlaps(boxes, threshold, inclusive)
    suppress.fill_diagonal_(False)
    victims = _pack(suppress)  # (P, words) the set that each proposal suppresses
    order = torch.argsort(probabilities.T.contiguous(), dim=1, descending=True, stable=True).T.contiguous()
    words, bits = (order // WORD)[:, :, None], order % WORD  # where each candidate's own bit is
    suppressed = victims.new_zeros(classes, victims.shape[1])
    for candidates, word, bit in zip(order, words, bits, strict=True):  # (C,) one proposal a class
        falls = (suppressed.gather(1, word)[:, 0] >> bit) & 1
        suppressed |= victims[candidates] & (falls - 1)[:, None]  # falls - 1 has all bits set where it stands
    return ~_unpack(suppressed, count).T


WORD = 63  # bits of an int64 that can be shifted without meeting its sign


def _pack(sets: torch.Tensor) -> torch.Tensor:
    """(n, P) bool as (n, words) int64."""
    padding = -sets.shape[1] % WORD
    padded = torch.nn.functional.pad(sets, (0, padding)).view(len(sets), -1, WORD).long()
    return (padded << torch.arange(WORD, device=sets.device)).sum(dim=2)


def _unpack(packed: torch.Tensor, count: int) -> torch.Tensor:
    """(n, words) int64 as (n, count) bool."""
    bits = (packed[:, :, None] >> torch.arange(WORD, device=packed.device)) & 1
    return bits.view(len(packed), -1)[:, :count].bool()
