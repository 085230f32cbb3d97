"""The rules that select an image's regions among a detector's proposals.

Shapes: P proposals of one image, C object classes (background left out), k regions.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from data_tools.devices import to_device, to_host
from data_tools.errors import UsageError
from extract.choices import MAX_CELLS, Rule
from extract.detector.boxes import ending_one_later, nms
from extract.detector.proposals import Proposals
from extract.detector.suppression import greedy, has_kernel, limit_below
from extract.regions.nms import confidences

Swept = tuple[torch.Tensor, Iterable[torch.Tensor]]


@dataclass(frozen=True)
class Regions:
    """The selected ones: `rows` (k,) int64 positions among the proposals, on the host, `boxes` (k, 4) to store."""

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
        """The regions of each of several images; a GPU is waited for once."""
        boxes, probabilities = [p.boxes for p in batch], [p.class_probabilities for p in batch]
        found = torch.cat(confidences(boxes, probabilities, self.nms, self.inclusive))
        [on_host] = to_host(found)
        rows = [self.choose(own) for own in on_host.split([len(own) for own in boxes])]
        return _regions(boxes, rows)

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
        return self.of_batch([proposals])[0]

    def of_batch(self, batch: Sequence[Proposals]) -> list[Regions]:
        """The regions of each of several images; a GPU is waited for once."""
        boxes = [proposals.regressed_boxes for proposals in batch]
        best = torch.cat([proposals.class_probabilities for proposals in batch]).amax(dim=1)
        scores = best.split([len(own) for own in boxes])
        sweep = self._sweep_on_gpu if has_kernel(boxes[0]) else self._sweep
        return _regions(boxes, [self._choose(*swept) for swept in sweep(boxes, scores)])

    def _choose(self, scores: torch.Tensor, sweep: Iterable[torch.Tensor]) -> torch.Tensor:
        """(k,) positions: the survivors at the lowest IoU threshold that leaves `min_boxes`, or all, best first.

        Args:
            scores: (P,) on the host.
            sweep: the survivors' positions, best first, for each of `_thresholds`.
        """
        enough = (kept for kept in sweep if len(kept) >= self.min_boxes)
        kept = next(enough, None)
        if kept is None:
            kept = torch.argsort(scores, descending=True, stable=True)
        confident = int((scores[kept] >= self.threshold).sum())
        return kept[: min(max(confident, self.min_boxes), self.max_boxes)]

    def _thresholds(self) -> list[float]:
        steps = (self.nms + 0.1 * step for step in range(10))
        return [threshold for threshold in steps if threshold < 1.0]

    def _sweep(self, boxes: Sequence[torch.Tensor], scores: Sequence[torch.Tensor]) -> Iterator[Swept]:
        """What `_choose` takes, for each image; a threshold is tried where the one before left too few."""
        on_host = to_host(*boxes, *scores)
        for own, score in zip(on_host[: len(boxes)], on_host[len(boxes) :], strict=True):
            yield score, (nms(own, score, threshold, self.inclusive) for threshold in self._thresholds())

    def _sweep_on_gpu(self, boxes: Sequence[torch.Tensor], scores: Sequence[torch.Tensor]) -> Iterator[Swept]:
        """The same with all thresholds of all images in one kernel."""
        lengths, limits = [len(own) for own in boxes], [limit_below(t, self.inclusive) for t in self._thresholds()]
        together, joint = torch.cat(list(boxes)), torch.cat(list(scores))
        ends = ending_one_later(together) if self.inclusive else together
        kept, counts = greedy(ends, joint[None], lengths, limits or [1.0], False, max(lengths))
        rows, numbers, on_host = to_host(kept, counts, joint)
        for score, own, of_image in zip(on_host.split(lengths), rows.long(), numbers.tolist(), strict=True):
            survivors = [at[:number] for at, number in zip(own, of_image, strict=True)]
            yield score, survivors[: len(limits)]

    def provenance_line(self) -> str:
        """The rule and its settings in one line, for a store's provenance."""
        return _line(Rule.DETECTRON2, self)


class _All:
    """Every proposal, in the given order."""

    def __call__(self, proposals: Proposals) -> Regions:
        """All of them."""
        return Regions(torch.arange(len(proposals.boxes)), proposals.boxes)

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


def joint_rows(lengths: Sequence[int], rows: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    """(k of all,) positions on a device: rows of each image, on the host, where the images follow one another.

    >>> joint_rows([3, 2], [torch.tensor([2, 0]), torch.tensor([1])], torch.device("cpu"))
    tensor([2, 0, 4])
    """
    starts = itertools.accumulate(lengths, initial=0)
    return to_device(torch.cat([own + start for own, start in zip(rows, starts, strict=False)]), device)


def _regions(boxes: Sequence[torch.Tensor], rows: Sequence[torch.Tensor]) -> list[Regions]:
    """The rows of each image's (P, 4) boxes, selected together."""
    taken = torch.cat(list(boxes))[joint_rows([len(own) for own in boxes], rows, boxes[0].device)]
    parts = taken.split([len(own) for own in rows])
    return [Regions(*region) for region in zip(rows, parts, strict=True)]


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
