"""The feature store: one HDF5 file of region features for a whole image collection (format version 1).

Shapes: N images, M regions in all, K regions of one image, D feature dimension. The regions of image i are
the rows `offsets[i]:offsets[i + 1]` of every data set that has M rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

FORMAT = "region-features"
FORMAT_VERSION = 1
SOURCES = "virtual_sources"  # attribute: JSON list of the stores whose features this one shows
ALIGNMENT = 4096  # bytes: a page, so that a read of one image touches no more pages than it must

REGION_COLUMNS: dict[str, tuple[str, tuple[int, ...]]] = {  # beside features: type and shape after M
    "boxes": ("<f4", (4,)),
    "class_ids": ("<i4", ()),
    "class_scores": ("<f4", ()),
    "attribute_ids": ("<i4", ()),
    "attribute_scores": ("<f4", ()),
}


@dataclass(frozen=True)
class Block:
    """Consecutive images of a store, in memory.

    Attributes:
        image_ids: n ids.
        counts: (n,) int64, regions of each image; they add up to m.
        regions: `features` (m, D) and any of `REGION_COLUMNS`, each with m rows.
        image_sizes: (n, 2) int32 height and width, or None.
        failures: what could not be stored, each with at least `id`, `file` and `reason`.
    """

    image_ids: list[str]
    counts: np.ndarray
    regions: dict[str, np.ndarray]
    image_sizes: np.ndarray | None = None
    failures: tuple[dict[str, str], ...] = ()


@dataclass(frozen=True)
class StoreSchema:
    """What must be known of a store before its first row is written."""

    images: int
    regions: int
    dim: int
    feature_dtype: str  # "<f4" or "<f2"
    region_columns: tuple[str, ...]
    has_image_sizes: bool
    id_bytes: int  # of the longest id in UTF-8

    @classmethod
    def of(cls, blocks: Sequence[Block]) -> "StoreSchema":
        """The shape of the store that holds these blocks (at least one)."""
        features = blocks[0].regions["features"]
        return cls(
            images=sum(len(block.image_ids) for block in blocks),
            regions=sum(int(block.counts.sum()) for block in blocks),
            dim=features.shape[1],
            feature_dtype=features.dtype.newbyteorder("<").str,
            region_columns=tuple(name for name in REGION_COLUMNS if name in blocks[0].regions),
            has_image_sizes=blocks[0].image_sizes is not None,
            id_bytes=max((len(i.encode()) for block in blocks for i in block.image_ids), default=1),
        )

    def data_sets(self) -> dict[str, tuple[Any, tuple[int, ...]]]:
        """Name -> (type, shape) of every data set."""
        sets: dict[str, tuple[Any, tuple[int, ...]]] = {
            "image_ids": (h5py.string_dtype("utf-8", self.id_bytes), (self.images,)),
            "offsets": ("<i8", (self.images + 1,)),
            "features": (self.feature_dtype, (self.regions, self.dim)),
        }
        if self.has_image_sizes:
            sets["image_sizes"] = ("<i4", (self.images, 2))
        for name in self.region_columns:
            dtype, trailing = REGION_COLUMNS[name]
            sets[name] = (dtype, (self.regions, *trailing))
        return sets
