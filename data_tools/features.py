"""Reading region features, from an HDF5 store or from SCAN's arrays, image by image.

Shapes: N images, M regions in all, K regions of one image, D feature dimension.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from data_tools.captions import Split
from data_tools.errors import InputError
from data_tools.store import FeatureStore, rows_of


class RegionFeatures(Protocol):
    """What `chan` knows of features, whatever file they lie in. Readers may be sent to other processes."""

    @property
    def dim(self) -> int:
        """D."""

    @property
    def counts(self) -> np.ndarray:
        """(N,) int64: regions of each image."""

    @property
    def provenance(self) -> dict[str, str]:
        """How the features were made; empty where the file does not say."""

    def rows(self, image_ids: Sequence[str]) -> np.ndarray:
        """(n,) int64: the rows that hold these images; `InputError` names a missing one."""

    def read(self, row: int) -> np.ndarray:
        """(K, D) float16 or float32: the features of an image's regions."""

    def boxes(self, row: int) -> np.ndarray | None:
        """(K, 4) float32 x1 y1 x2 y2 in pixels of the upright original; None where the file has none."""


class ScanFeatures:
    """SCAN's `{split}_ims.npy`, (images, K, D), read in place through a memory map.

    The array has a row for each image of the split, or a row for each caption (five equal ones an image).
    """

    provenance: dict[str, str] = {}  # noqa: RUF012 - a constant of the format

    def __init__(self, path: Path, split: Split) -> None:
        self._path, self._split = path, split
        try:
            self._array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{path}: not a NumPy array file: {error}") from None
        if not isinstance(self._array, np.ndarray):
            raise InputError(f"{path}: an archive of arrays, expected one array")
        if self._array.ndim != 3 or self._array.dtype.kind != "f":
            raise InputError(
                f"{path}: expected floats of shape (images, regions, dim), "
                f"found {self._array.dtype} {self._array.shape}"
            )
        images, captions = len(split.image_ids), len(split.captions)
        if len(self._array) not in (images, captions):
            raise InputError(
                f"{path}: holds {len(self._array)} images; split {split.name} has {images} "
                f"(or {captions} captions)"
            )
        first_caption = np.unique(split.caption_images, return_index=True)[1]
        self._first = np.arange(images) if len(self._array) == images else first_caption

    def __getstate__(self) -> tuple[Path, Split]:
        return self._path, self._split

    def __setstate__(self, state: tuple[Path, Split]) -> None:
        self.__init__(*state)  # type: ignore[misc]  # a memory map is opened anew in each process

    @property
    def dim(self) -> int:
        """D."""
        return int(self._array.shape[2])

    @property
    def counts(self) -> np.ndarray:
        """(N,) int64: K for every image."""
        return np.full(len(self._split.image_ids), self._array.shape[1], dtype=np.int64)

    def rows(self, image_ids: Sequence[str]) -> np.ndarray:
        """(n,) int64: positions of these ids in the split."""
        positions = {image_id: row for row, image_id in enumerate(self._split.image_ids)}
        return rows_of(image_ids, positions, self._path)

    def read(self, row: int) -> np.ndarray:
        """(K, D): the features of an image's regions."""
        return np.array(self._array[self._first[row]], dtype=self._array.dtype.newbyteorder("="))

    def boxes(self, row: int) -> np.ndarray | None:
        """None: these files have no boxes."""
        return None


def open_features(source: Path, split: Split) -> RegionFeatures:
    """The reader of a features file: SCAN's array if it ends in `.npy`, else an HDF5 store."""
    return ScanFeatures(source, split) if source.suffix == ".npy" else FeatureStore(source)
