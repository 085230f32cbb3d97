"""Which of a detector's proposals become an image's regions.

Shapes: P proposals of one image, C object classes (background left out), k regions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from extract.detector.boxes import nms, overlaps
from extract.detector.proposals import Proposals

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


def per_class_nms(
    boxes: Sequence[torch.Tensor], probabilities: Sequence[torch.Tensor], threshold: float, inclusive: bool
) -> list[torch.Tensor]:
    """For each image (P, C) whether its (P, 4) boxes survive greedy suppression in each class of (P, C).

    All classes share the boxes of an image, so one overlap matrix serves them all, and all classes of all images
    advance together: at step r each class looks at its r-th most probable proposal and, if that still stands,
    suppresses what overlaps it. As many steps as the longest image has proposals, in place of C separate
    suppressions an image, on sets of proposals packed into the bits of integers.
    """
    most = max(map(len, boxes))
    victims, order = [], []
    for image, (own_boxes, own) in enumerate(zip(boxes, probabilities, strict=True)):
        missing = most - len(own)
        suppress = overlaps(own_boxes, threshold, inclusive)
        suppress.fill_diagonal_(False)
        victims.append(_pack(torch.nn.functional.pad(suppress, (0, missing, 0, missing))))
        ranked = torch.argsort(own.T.contiguous(), dim=1, descending=True, stable=True).T
        nobody = torch.arange(len(own), most, device=own.device)  # who suppresses nobody and comes last
        order.append(torch.cat([ranked, nobody[:, None].expand(-1, own.shape[1])]) + image * most)
    suppressed = _suppressed(torch.cat(victims), torch.cat(order, dim=1), most)
    images = suppressed.split([own.shape[1] for own in probabilities])
    return [~_unpack(own, len(of_image)).T for own, of_image in zip(images, boxes, strict=True)]


def _suppressed(victims: torch.Tensor, order: torch.Tensor, most: int) -> torch.Tensor:
    """(classes, words) the set that falls in each class.

    Args:
        victims: (images x most, words) the set that each proposal suppresses, as `_pack` has it.
        order: (most, classes) each class's rows of `victims`, the most probable first.
        most: proposals of an image.
    """
    places = order % most
    words, bits = (places // WORD)[:, :, None], places % WORD  # where each candidate's own bit is
    suppressed = victims.new_zeros(order.shape[1], victims.shape[1])
    for candidates, word, bit in zip(order, words, bits, strict=True):  # (classes,) one proposal a class
        falls = (suppressed.gather(1, word)[:, 0] >> bit) & 1
        suppressed |= victims[candidates] & (falls - 1)[:, None]  # falls - 1 has all bits set where it stands
    return suppressed


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
