"""Where the training features lie: in their file, in memory, or on the device.

A batch from a file carries its features. A batch for a cache carries the positions of its regions among the
cached rows, from which one operation on the device takes them: see `FeatureCache.fill`.

Shapes: R regions of the batch, M regions of the split, F feature dimension.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from chan.data.splits import FeatureSplit
from chan.packing import Packed
from data_tools.console import Progress
from data_tools.errors import InputError

IMAGES = 512  # read at a time
SHARE = 0.5  # of the device's free memory that `auto` gives to features


@dataclass(frozen=True)
class FeatureCache:
    """All regions of a split: `rows` (M, F) as stored, those of image i from row `starts[i]` on."""

    rows: Tensor
    starts: np.ndarray

    def fill(self, positions: Packed, device: torch.device) -> Packed:
        """The features (R, F) of regions given by their positions (R,) among the rows.

        Those of a cache in memory are put where a copy to a GPU, `device`, need not be waited for.
        """
        index = positions.rows.to(self.rows.device, non_blocking=True)
        pinned = device.type == "cuda" and self.rows.device.type == "cpu"
        if not pinned:
            return positions.with_rows(self.rows.index_select(0, index))
        found = torch.empty(len(index), self.rows.shape[1], dtype=self.rows.dtype, pin_memory=True)
        return positions.with_rows(torch.index_select(self.rows, 0, index, out=found))


def make_cache(opened: FeatureSplit, kind: str, device: torch.device) -> FeatureCache | None:
    """The cache of a split; None where the features are better read from their file.

    Args:
        opened: the split.
        kind: mmap (none; the operating system keeps what it reads), memory, device, or auto: the device if
            it is a GPU with twice as much free memory as the features need, else mmap.
        device: where training takes place.

    Raises:
        InputError: the features do not fit where they were asked to go.
    """
    if kind == "auto":
        kind = "device" if device.type == "cuda" and _fits(opened, device) else "mmap"
    if kind == "mmap":
        return None
    where = device if kind == "device" else torch.device("cpu")
    counts = opened.counts
    starts = np.concatenate([[0], counts.cumsum()])
    try:
        rows = torch.empty(int(starts[-1]), opened.features.dim, dtype=_dtype(opened), device=where)
    except RuntimeError:  # torch's out-of-memory errors are of this kind
        gigabytes = _bytes(opened) / 1e9
        raise InputError(
            f"{opened.source}: data.cache={kind}: {gigabytes:.1f} GB of features do not fit"
        ) from None
    with Progress(f"reading {opened.split.name}", len(counts), "images") as progress:
        for first in range(0, len(counts), IMAGES):
            last = min(first + IMAGES, len(counts))
            block = opened.gather(np.arange(first, last))
            rows[starts[first] : starts[last]] = torch.from_numpy(block)
            progress.advance(last - first)
    return FeatureCache(rows, starts[:-1])


def _dtype(opened: FeatureSplit) -> torch.dtype:
    return torch.from_numpy(np.empty(0, opened.features.dtype)).dtype


def _bytes(opened: FeatureSplit) -> int:
    return int(opened.counts.sum()) * opened.features.dim * _dtype(opened).itemsize


def _fits(opened: FeatureSplit, device: torch.device) -> bool:
    return _bytes(opened) <= SHARE * torch.cuda.mem_get_info(device)[0]
