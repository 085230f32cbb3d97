"""The schema of the feature store: one HDF5 file with the region features of a collection (format version 1).

Shapes: N images, M regions in total, D feature dimension; n images and m regions of a block. The regions of
image i are the rows `offsets[i]:offsets[i + 1]` of every dataset with M rows.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

FORMAT = "region-features"
FORMAT_VERSION = 1
SOURCES = "virtual_sources"  # attribute of a virtual store: JSON list of the stores that hold its features
ALIGNMENT = 4096  # bytes: a page, so that reading one image touches the minimum number of pages

REGION_COLUMNS: dict[str, tuple[str, tuple[int, ...]]] = {  # besides features: type, and shape after M
    "boxes": ("<f4", (4,)),
    "class_ids": ("<i4", ()),
    "class_scores": ("<f4", ()),
    "attribute_ids": ("<i4", ()),
    "attribute_scores": ("<f4", ()),
    "box_confidence": ("<f4", ()),  # where boxes were recovered; 0: the region has no box
}


@dataclass(frozen=True)
class Block:
    """Consecutive images of a store, in memory.

    Attributes:
        image_ids: n ids.
        counts: (n,) int64, regions of each image; their sum is m.
        regions: `features` (m, D) and any of `REGION_COLUMNS`, each with m rows.
        image_sizes: (n, 2) int32 height and width, or None.
        failures: images that could not be extracted, each with at least `id`, `file` and `reason`.
    """

    image_ids: list[str]
    counts: np.ndarray
    regions: dict[str, np.ndarray]
    image_sizes: np.ndarray | None = None
    failures: tuple[dict[str, str], ...] = ()


def known_boxes(regions: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """The boxes (m, 4) of a block's regions, NaN where a region has none; None without any boxes.

    >>> columns = {"boxes": np.ones((2, 4), np.float32), "box_confidence": np.array([0.9, 0], np.float32)}
    >>> known_boxes(columns)
    array([[ 1.,  1.,  1.,  1.],
           [nan, nan, nan, nan]], dtype=float32)
    """
    if "boxes" not in regions or "box_confidence" not in regions:
        return regions.get("boxes")
    known = regions["box_confidence"] > 0  # NaN is none either
    return np.where(known[:, None], regions["boxes"], np.float32("nan"))


@dataclass(frozen=True)
class StoreSchema:
    """Datasets and sizes of a store, as needed before its first row is written.

    Attributes:
        images, regions, dim: N, M and D.
        feature_dtype: `<f4` or `<f2`.
        region_columns: which of `REGION_COLUMNS` it has.
        has_image_sizes: whether it has `image_sizes`.
        id_bytes: length of the longest id in UTF-8.
    """

    images: int
    regions: int
    dim: int
    feature_dtype: str
    region_columns: tuple[str, ...]
    has_image_sizes: bool
    id_bytes: int

    @classmethod
    def of(cls, blocks: Sequence[Block]) -> "StoreSchema":
        """The schema of a store with these blocks, of which there is at least one.

        >>> block = Block(["7"], np.array([2]), {"features": np.zeros((2, 4), np.float32)})
        >>> schema = StoreSchema.of([block])
        >>> schema.images, schema.regions, schema.dim, schema.feature_dtype
        (1, 2, 4, '<f4')
        """
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

    @property
    def size(self) -> int:
        """Bytes of all datasets, each from the beginning of a page on."""
        sizes = (math.prod(shape) * np.dtype(dtype).itemsize for dtype, shape in self.datasets().values())
        return sum(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes)

    def datasets(self) -> dict[str, tuple[Any, tuple[int, ...]]]:
        """Type and shape of every dataset by name."""
        datasets: dict[str, tuple[Any, tuple[int, ...]]] = {
            "image_ids": (h5py.string_dtype("utf-8", self.id_bytes), (self.images,)),
            "offsets": ("<i8", (self.images + 1,)),
            "features": (self.feature_dtype, (self.regions, self.dim)),
        }
        if self.has_image_sizes:
            datasets["image_sizes"] = ("<i4", (self.images, 2))
        for name in self.region_columns:
            dtype, trailing = REGION_COLUMNS[name]
            datasets[name] = (dtype, (self.regions, *trailing))
        return datasets
