"""Lists of the regions of a segment that are most similar to a vector: a FAISS index beside the segment's file.

Shapes: M regions of the segment, D joint dimension, T vectors, R regions listed for each.
"""

import math
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from chan.retrieval.segments import OpenSegment
from data_tools.console import Progress
from data_tools.errors import InputError, one_line
from data_tools.files import replacing

KIND = "IVF{cells},SQ8"  # see docs/performance.md for what others measured
EXACT_KIND = "SQfp16"  # all regions are compared, in the precision that the segment has
ENOUGH_REGIONS = 1_000_000  # of a segment, that lists pay: a scan of fewer takes about a second
PROBES = 64  # cells that are looked through per vector
MAX_CELLS = 1024
SAMPLE_PER_CELL = 40  # regions that the cells are trained on
TRAINING_ROUNDS = 8
BLOCK = 1 << 16  # regions converted and added at a time: 256 MiB in float32 at D 1024


def pays(regions: int) -> bool:
    """Whether a segment of so many regions gets lists: it is large, and FAISS is installed."""
    return regions >= ENOUGH_REGIONS and find_spec("faiss") is not None


@dataclass(frozen=True)
class RegionLists:
    """An opened file of lists.

    Attributes:
        exact: whether no region outside a list is more similar than those in it.
    """

    _faiss_index: Any
    exact: bool

    def nearest(self, vectors: np.ndarray, listed: int) -> tuple[np.ndarray, np.ndarray]:
        """The R most similar regions for vectors (T, D): similarities (T, R), falling, and regions (T, R) int64.

        R is `listed`, or M where that is less. Where fewer are found they are -inf and -1.
        """
        size = min(listed, self._faiss_index.ntotal)
        values, regions = self._faiss_index.search(np.ascontiguousarray(vectors, np.float32), size)
        return np.where(regions < 0, np.float32(-np.inf), values), regions


def lists_file(folder: Path, name: str) -> Path:
    """The file of a segment's lists."""
    return folder / f"{name}.faiss"


def build_lists(folder: Path, segment: OpenSegment, kind: str = KIND) -> None:
    """Write the lists of a segment, complete or not at all.

    Args:
        folder: the index.
        segment: one with regions.
        kind: FAISS's name of an index, in which `{cells}` stands for the number of cells.

    Raises:
        InputError: the disk is full or the folder cannot be written.
    """
    import faiss

    regions, dim = segment.segment.regions, segment.store.dim
    made = faiss.index_factory(dim, kind.format(cells=_cells(regions)), faiss.METRIC_INNER_PRODUCT)
    if isinstance(made, faiss.IndexIVF):
        made.cp.niter, made.cp.seed = TRAINING_ROUNDS, 0
        made.cp.max_points_per_centroid = SAMPLE_PER_CELL
        made.nprobe = min(PROBES, made.nlist)
    made.train(segment.spread_regions(_cells(regions) * SAMPLE_PER_CELL))
    with Progress("lists", regions, "regions") as progress:
        for rows in segment.region_blocks(BLOCK):
            made.add(rows)
            progress.advance(len(rows))
    with replacing(lists_file(folder, segment.segment.name)) as temporary:
        try:
            faiss.write_index(made, str(temporary))
        except RuntimeError as error:
            raise InputError(f"{lists_file(folder, segment.segment.name)}: {one_line(error)}") from None


def open_lists(folder: Path, segment: OpenSegment) -> RegionLists | None:
    """The lists of a segment; None if its manifest names none, or FAISS is not installed.

    Raises:
        InputError: the file is missing, damaged or of another segment.
    """
    if not segment.segment.lists or find_spec("faiss") is None:
        return None
    import faiss

    path = lists_file(folder, segment.segment.name)
    fix = f"fix: chan index --compact --out {folder}"
    try:
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP)  # a large file is not read before its first search
    except RuntimeError as error:
        raise InputError(f"{path}: cannot be read ({one_line(error)}); {fix}") from None
    if (index.ntotal, index.d) != (segment.segment.regions, segment.store.dim):
        raise InputError(
            f"{path}: expected {segment.segment.regions} regions of {segment.store.dim} numbers, "
            f"found {index.ntotal} of {index.d}; {fix}"
        )
    return RegionLists(index, isinstance(index, faiss.IndexScalarQuantizer))


def _cells(regions: int) -> int:
    """A power of two near 2 sqrt(M)."""
    return min(MAX_CELLS, 1 << max(0, round(math.log2(2 * math.sqrt(regions)))))
