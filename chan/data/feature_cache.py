"""Where the training features are held: in their file, in memory, or on the device.

A batch read from the file carries its features. A batch for a cache carries the positions of its regions among the
cached rows, and one operation on the device gathers them: see `FeatureCache.fill`.

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

READ_IMAGES = 512  # images per read while a cache is filled
MAX_MEMORY_SHARE = 0.5  # of the device's free memory that `auto` lets features take


@dataclass(frozen=True)
class FeatureCache:
    """All regions of a split: `rows` (M, F) of the stored type; those of image i begin at row `starts[i]`."""

    rows: Tensor
    starts: np.ndarray

    def fill(self, positions: Packed, device: torch.device) -> Packed:
        """The features (R, F) of regions given by their positions (R,) among the rows.

        From a cache in memory they are gathered into pinned memory if `device` is a GPU, so that the copy to it
        runs asynchronously.
        """
        index = positions.rows.to(self.rows.device, non_blocking=True)
        pinned = device.type == "cuda" and self.rows.device.type == "cpu"
        if not pinned:
            return positions.with_rows(self.rows.index_select(0, index))
        found = torch.empty(len(index), self.rows.shape[1], dtype=self.rows.dtype, pin_memory=True)
        return positions.with_rows(torch.index_select(self.rows, 0, index, out=found))


def make_cache(feature_split: FeatureSplit, kind: str, device: torch.device) -> FeatureCache | None:
    """The cache of a split; None where batches are read from the features file.

    Args:
        feature_split: the split.
        kind: mmap (no cache but the operating system's), memory, device, or auto: the device if it is a GPU with
            twice as much free memory as the features need, else mmap.
        device: where training takes place.

    Raises:
        InputError: the features do not fit into the memory that `kind` names.
    """
    if kind == "auto":
        kind = "device" if device.type == "cuda" and _fits(feature_split, device) else "mmap"
    if kind == "mmap":
        return None
    where = device if kind == "device" else torch.device("cpu")
    counts = feature_split.counts
    starts = np.concatenate([[0], counts.cumsum()])
    try:
        rows = torch.empty(int(starts[-1]), feature_split.features.dim, dtype=_dtype(feature_split), device=where)
    except RuntimeError:  # torch's out-of-memory errors are RuntimeErrors
        gigabytes = _bytes(feature_split) / 1e9
        raise InputError(
            f"{feature_split.source}: data.cache={kind}: {gigabytes:.1f} GB of features do not fit"
        ) from None
    with Progress(f"reading {feature_split.split.name}", len(counts), "images") as progress:
        for first in range(0, len(counts), READ_IMAGES):
            last = min(first + READ_IMAGES, len(counts))
            block = feature_split.gather(np.arange(first, last))
            rows[starts[first] : starts[last]] = torch.from_numpy(block)
            progress.advance(last - first)
    return FeatureCache(rows, starts[:-1])


def _dtype(feature_split: FeatureSplit) -> torch.dtype:
    return torch.from_numpy(np.empty(0, feature_split.features.dtype)).dtype


def _bytes(feature_split: FeatureSplit) -> int:
    return int(feature_split.counts.sum()) * feature_split.features.dim * _dtype(feature_split).itemsize


def _fits(feature_split: FeatureSplit, device: torch.device) -> bool:
    return _bytes(feature_split) <= MAX_MEMORY_SHARE * torch.cuda.mem_get_info(device)[0]
