"""How alike two sets of region features of the same images are, whatever their formats.

The rows of each image are matched one to one so that the sum of their cosines is largest (Hungarian method).
Images are read one at a time, and only counts and histograms are kept.

Shapes: K and L regions of one image in the two sets, n = min(K, L) matched rows.
"""

import heapq
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.console import Progress
from data_tools.errors import InputError
from data_tools.files import replacing
from data_tools.formats.conversion import open_source
from data_tools.formats.source import RegionSource, named_by_ids
from data_tools.store.schema import known_boxes

LEVELS = (0.99, 0.999)  # cosines and IoUs from which rows count as equal
WORST = 10
SHOWN_IDS = 5
EDGES = np.logspace(-8, np.log10(2), 101)  # of the histogram of 1 - cosine; smaller values are in its first bin


@dataclass(frozen=True)
class Matching:
    """The matched rows of one image.

    Attributes:
        rows: K and L.
        cosines: (n,) float64 of the matched rows.
        errors: (n,) float64, length of their difference relative to the length of the second set's row.
        ious: (at most n,) float64 of the boxes of rows that have one in both sets; None where a set has none.
    """

    rows: tuple[int, int]
    cosines: np.ndarray
    errors: np.ndarray
    ious: np.ndarray | None = None

    @property
    def mean_cosine(self) -> float:
        """Of the larger set's rows, 0 for those that have no partner."""
        return float(self.cosines.sum()) / max(*self.rows, 1)


def match(ours: np.ndarray, theirs: np.ndarray, boxes: tuple[np.ndarray, np.ndarray] | None = None) -> Matching:
    """Match the rows (K, D) and (L, D) of one image.

    Args:
        ours, theirs: features; a row of zeros has the cosine 0 with every row.
        boxes: (K, 4) and (L, 4) x1 y1 x2 y2, if both sets have boxes; NaN for a row without one.
    """
    from scipy.optimize import linear_sum_assignment

    first, second = ours.astype(np.float64), theirs.astype(np.float64)
    lengths = [np.linalg.norm(rows, axis=1) for rows in (first, second)]
    units = [
        rows / np.where(length == 0, 1, length)[:, None]
        for rows, length in zip((first, second), lengths, strict=True)
    ]
    cosines = units[0] @ units[1].T
    own, other = linear_sum_assignment(cosines, maximize=True)
    differences = np.linalg.norm(first[own] - second[other], axis=1)
    errors = differences / np.where(lengths[1][other] == 0, 1, lengths[1][other])
    ious = None if boxes is None else _known_ious(boxes[0][own], boxes[1][other])
    return Matching((len(ours), len(theirs)), cosines[own, other], errors, ious)


def box_ious(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(n,) intersection over union of the boxes (n, 4) at equal positions; 0 where both are empty.

    >>> box_ious(np.array([[0.0, 0, 2, 2]]), np.array([[1.0, 0, 3, 2]])).round(3).tolist()
    [0.333]
    """
    first, second = first.astype(np.float64), second.astype(np.float64)
    low, high = np.maximum(first[:, :2], second[:, :2]), np.minimum(first[:, 2:], second[:, 2:])
    shared = (high - low).clip(min=0).prod(axis=1)
    areas = sum((boxes[:, 2:] - boxes[:, :2]).clip(min=0).prod(axis=1) for boxes in (first, second))
    union = areas - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def _known_ious(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """As `box_ious`, of those pairs that are boxes on both sides."""
    known = ~(np.isnan(first) | np.isnan(second)).any(axis=1)
    return box_ious(first[known], second[known])


@dataclass
class Comparison:
    """What the comparison of two sets found.

    Attributes:
        only_ours, only_theirs: ids that one of the sets lacks.
        images: that both have.
        rows: of these images in each set.
        matched: rows that have a partner.
        above: for each of `LEVELS`, matched rows whose cosine is at least that.
        histogram: matched rows by 1 - cosine, in the bins of `EDGES`.
        boxes: matched rows with boxes on both sides, and `ious`: those whose IoU reaches each of `LEVELS`.
        worst: images with the lowest mean cosine, lowest first.
    """

    only_ours: list[str] = field(default_factory=list)
    only_theirs: list[str] = field(default_factory=list)
    images: int = 0
    rows: list[int] = field(default_factory=lambda: [0, 0])
    matched: int = 0
    larger: int = 0
    above: dict[float, int] = field(default_factory=lambda: dict.fromkeys(LEVELS, 0))
    cosine_sum: float = 0.0
    error_sum: float = 0.0
    error_max: float = 0.0
    histogram: np.ndarray = field(default_factory=lambda: np.zeros(len(EDGES) - 1, np.int64))
    boxes: int = 0
    iou_sum: float = 0.0
    ious: dict[float, int] = field(default_factory=lambda: dict.fromkeys(LEVELS, 0))
    worst: list[tuple[float, str]] = field(default_factory=list)

    def add(self, image_id: str, found: Matching) -> None:
        """Count one image."""
        self.images += 1
        self.rows = [total + count for total, count in zip(self.rows, found.rows, strict=True)]
        self.matched += len(found.cosines)
        self.larger += max(found.rows)
        self.cosine_sum += float(found.cosines.sum())
        self.error_sum += float(found.errors.sum())
        self.error_max = max(self.error_max, float(found.errors.max(initial=0)))
        distances = (1 - found.cosines).clip(EDGES[0], EDGES[-1])
        self.histogram += np.histogram(distances, EDGES)[0]
        for level in LEVELS:
            self.above[level] += int((found.cosines >= level).sum())
            if found.ious is not None:
                self.ious[level] += int((found.ious >= level).sum())
        if found.ious is not None:
            self.boxes += len(found.ious)
            self.iou_sum += float(found.ious.sum())
        entry = (-found.mean_cosine, image_id)
        (heapq.heappush if len(self.worst) < WORST else heapq.heappushpop)(self.worst, entry)

    def share(self, level: float = LEVELS[0]) -> float:
        """Rows with a partner whose cosine is at least `level`, of the rows of the larger set of each image."""
        return self.above[level] / self.larger if self.larger else 0.0

    def as_json(self) -> dict[str, Any]:
        """The numbers as plain data."""
        boxes = {"matched": self.boxes, "mean_iou": self.iou_sum / self.boxes} if self.boxes else None
        return {
            "images": self.images,
            "only_ours": self.only_ours,
            "only_theirs": self.only_theirs,
            "rows": self.rows,
            "matched": self.matched,
            "share_above": {str(level): self.share(level) for level in LEVELS},
            "mean_cosine": self.cosine_sum / max(self.matched, 1),
            "relative_error": {"mean": self.error_sum / max(self.matched, 1), "max": self.error_max},
            "boxes": boxes
            and {**boxes, "share_above": {str(level): self.ious[level] / self.boxes for level in LEVELS}},
            "worst": [{"id": name, "mean_cosine": -cosine} for cosine, name in sorted(self.worst, reverse=True)],
        }

    def as_text(self) -> str:
        """The numbers for people."""
        found = self.as_json()
        lines = [
            f"images in both: {self.images}",
            *(_missing(where, ids) for where, ids in (("ours", self.only_ours), ("theirs", self.only_theirs))),
            f"rows: {self.rows[0]} ours, {self.rows[1]} theirs, {self.matched} matched",
            *(f"cosine from {level}: {100 * self.share(level):.2f} % of the rows" for level in LEVELS),
            f"mean cosine {found['mean_cosine']:.6f}; relative error: mean {found['relative_error']['mean']:.2e}, "
            f"largest {self.error_max:.2e}",
        ]
        if self.boxes:
            shares = ", ".join(f"{100 * self.ious[level] / self.boxes:.2f} % from {level}" for level in LEVELS)
            lines.append(f"IoU of matched boxes: mean {self.iou_sum / self.boxes:.4f}; {shares}")
        else:
            lines.append("IoU: not known, one of the sets has no boxes")
        lines.append("images with the lowest mean cosine:")
        lines += [f"  {entry['mean_cosine']:.6f}  {entry['id']}" for entry in found["worst"]]
        return "\n".join(line for line in lines if line)


def compare_features(ours: Path, theirs: Path, id_mapping: Path | None = None) -> Comparison:
    """Compare two sets of features of the same images.

    Args:
        ours, theirs: a store, SCAN's `.npy` or a folder of them, a TSV, or a folder of MILVLG's `.npz`.
        id_mapping: an `id_mapping.json` by which the file names of `theirs` are replaced by ids.

    Raises:
        InputError: a set cannot be read, they have no image in common, or their features are not of one dimension.
    """
    first, second = open_source(ours), open_source(theirs)
    if id_mapping is not None:
        second = named_by_ids(second, id_mapping)
    if first.dim != second.dim:
        raise InputError(f"{ours}: features of {first.dim} numbers; those of {theirs} have {second.dim}")
    row_of = {name: row for row, name in enumerate(second.image_ids)}
    result = Comparison(
        only_ours=[name for name in first.image_ids if name not in row_of],
        only_theirs=sorted(row_of.keys() - set(first.image_ids)),
    )
    common = [(row, name) for row, name in enumerate(first.image_ids) if name in row_of]
    if not common:
        raise InputError(
            f"{ours} and {theirs} have no image in common: {first.image_ids[0]!r} and {second.image_ids[0]!r}, "
            "for instance; fix: give --id-mapping if one is named by files and the other by ids"
        )
    with Progress("compare", len(common), "images") as progress:
        for row, name in common:
            result.add(name, _match_images(first, row, second, row_of[name]))
            progress.advance()
    return result


def draw_histogram(found: Comparison, path: Path) -> None:
    """Draw how many matched rows have which distance, 1 - cosine, as a PNG; `InputError` if that fails."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    axes.bar(EDGES[:-1], found.histogram, width=np.diff(EDGES), align="edge", color="#1f77b4")
    axes.set(xscale="log", yscale="symlog", xlabel="1 - cosine of matched rows", ylabel="rows", ylim=(0, None))
    for level in LEVELS:
        axes.axvline(1 - level, color="#d62728", linestyle=":", label=f"cosine {level}")
    axes.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def _match_images(first: RegionSource, row: int, second: RegionSource, other: int) -> Matching:
    blocks = first.image(row), second.image(other)
    columns = [block.regions for block in blocks]
    ours, theirs = (known_boxes(found) for found in columns)
    boxes = None if ours is None or theirs is None else (ours, theirs)
    return match(columns[0]["features"], columns[1]["features"], boxes)


def _missing(where: str, ids: list[str]) -> str:
    if not ids:
        return ""
    more = f" and {len(ids) - SHOWN_IDS} more" if len(ids) > SHOWN_IDS else ""
    return f"only in {where}: {len(ids)} images: {', '.join(ids[:SHOWN_IDS])}{more}"
