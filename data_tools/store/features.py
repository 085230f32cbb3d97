"""Reading region features from an HDF5 store or from SCAN's arrays, by image or by batch.

Shapes: N images, K regions of one image, D feature dimension, n images of a request.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from data_tools.captions.splits import Split, read_ids
from data_tools.errors import InputError, UnavailableError, UsageError, one_line, reading
from data_tools.layout import STORE_NAME
from data_tools.store.reading import FeatureStore, buffer_rows, find_rows

ARRAY_SUFFIX = "_ims.npy"
_SPLITS_FIRST = ("train", "dev", "testall", "test")  # the order in which a folder's arrays are read


class RegionFeatures(Protocol):
    """Region features of N images in any file format. Readers can be pickled and used in other processes."""

    @property
    def image_ids(self) -> list[str]:
        """N ids, in the order of the rows."""

    @property
    def dim(self) -> int:
        """D."""

    @property
    def dtype(self) -> np.dtype:
        """float16 or float32."""

    @property
    def counts(self) -> np.ndarray:
        """(N,) int64: regions of each image."""

    @property
    def provenance(self) -> dict[str, str]:
        """How the features were made; empty if the file does not say."""

    def __len__(self) -> int:
        """N."""

    def rows(self, image_ids: Sequence[str]) -> np.ndarray:
        """(n,) int64: the row of each of these images; `InputError` names one that is missing."""

    def read(self, row: int) -> np.ndarray:
        """(K, D) float16 or float32: the region features of one image."""

    def gather(self, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """(sum of the counts of `rows`, D): the region features of several images, one image after the other.

        With `out` they are written to its first rows, which are returned; see `FeatureStore.gather`.
        """

    def boxes(self, row: int) -> np.ndarray | None:
        """(K, 4) float32 x1 y1 x2 y2 in pixels of the upright original; None if the file has no boxes.

        NaN for a region that has no box.
        """


class ScanFeatures:
    """SCAN's `{split}_ims.npy`, an array (images, K, D) that is read through a memory map.

    The array has one row per image of the split, or one row per caption with five equal rows per image.

    Args:
        path: the array.
        split: the images of the array; None reads their ids from `{split}_ids.txt` beside it.

    Raises:
        InputError: the file is not an array of floats with three dimensions, or its rows do not fit the ids.
    """

    provenance: dict[str, str] = {}  # noqa: RUF012 - a constant of the format

    def __init__(self, path: Path, split: Split | None = None) -> None:
        self.path, self._split = path, split
        self._array = _open_array(path)
        if split is None:
            self.image_ids, self._first = _ids_beside(path, len(self._array))
        else:
            self.image_ids, self._first = split.image_ids, _first_rows(path, split, len(self._array))
        self._positions = {image_id: row for row, image_id in enumerate(self.image_ids)}

    def __getstate__(self) -> tuple[Path, Split | None]:
        return self.path, self._split

    def __setstate__(self, state: tuple[Path, Split | None]) -> None:
        self.__init__(*state)  # type: ignore[misc]  # each process opens its own memory map

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def dim(self) -> int:
        """D."""
        return int(self._array.shape[2])

    @property
    def dtype(self) -> np.dtype:
        """Of the features, in native byte order; float64 is read as float32."""
        return np.dtype(np.float32) if self._array.dtype.itemsize == 8 else self._array.dtype.newbyteorder("=")

    @property
    def counts(self) -> np.ndarray:
        """(N,) int64: K for every image."""
        return np.full(len(self.image_ids), self._array.shape[1], dtype=np.int64)

    def rows(self, image_ids: Sequence[str]) -> np.ndarray:
        """(n,) int64: the row of each of these images; `InputError` names one that is missing."""
        return find_rows(image_ids, self._positions, self.path)

    def read(self, row: int) -> np.ndarray:
        """(K, D): the region features of one image."""
        return np.array(self._array[self._first[row]], dtype=self.dtype)

    def gather(self, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """(n * K, D): the region features of these images; see `FeatureStore.gather`."""
        regions = self._array.shape[1]
        filled = buffer_rows(out, len(rows) * regions, self.dim, self.dtype)
        for position, row in enumerate(self._first[np.asarray(rows, dtype=np.int64)].tolist()):
            filled[position * regions : (position + 1) * regions] = self._array[row]
        return filled

    def boxes(self, row: int) -> np.ndarray | None:
        """None: these files have no boxes."""
        return None


class ScanFolder:
    """All arrays `{split}_ims.npy` of a folder, with the ids beside them, as one collection.

    An image of several splits (COCO's `test` is part of `testall`) is taken from the first of train, dev, testall,
    test and the other splits in the order of their names.

    Raises:
        InputError: the folder has no array, one is malformed, or they differ in feature dimension.
    """

    provenance: dict[str, str] = {}  # noqa: RUF012 - a constant of the format

    def __init__(self, folder: Path) -> None:
        self.path = folder
        names = sorted(path.name.removesuffix(ARRAY_SUFFIX) for path in folder.glob(f"*{ARRAY_SUFFIX}"))
        if not names:
            raise InputError(f"{folder}: holds no array (*{ARRAY_SUFFIX}) and no {STORE_NAME}")
        order = [name for name in _SPLITS_FIRST if name in names]
        order += [name for name in names if name not in _SPLITS_FIRST]
        self.arrays = [ScanFeatures(folder / f"{name}{ARRAY_SUFFIX}") for name in order]
        for array in self.arrays:
            if array.dim != self.dim:
                raise InputError(
                    f"{array.path}: {array.dim} numbers per region; {self.arrays[0].path} has {self.dim}"
                )
        self._places: dict[str, tuple[int, int]] = {}  # id -> array, row
        for number, array in enumerate(self.arrays):
            for row, image_id in enumerate(array.image_ids):
                self._places.setdefault(image_id, (number, row))
        self.image_ids = list(self._places)
        self._positions = {image_id: row for row, image_id in enumerate(self.image_ids)}
        self._table = list(self._places.values())

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def dim(self) -> int:
        """D."""
        return self.arrays[0].dim

    @property
    def dtype(self) -> np.dtype:
        """The widest of the arrays' types."""
        return np.result_type(*(array.dtype for array in self.arrays))

    @property
    def counts(self) -> np.ndarray:
        """(N,) int64: regions of each image."""
        regions = np.array([array.counts[0] if len(array) else 0 for array in self.arrays], dtype=np.int64)
        return regions[np.array([number for number, _ in self._table], dtype=np.int64)]

    def rows(self, image_ids: Sequence[str]) -> np.ndarray:
        """(n,) int64: the row of each of these images; `InputError` names one that is missing."""
        return find_rows(image_ids, self._positions, self.path)

    def read(self, row: int) -> np.ndarray:
        """(K, D): the region features of one image."""
        number, place = self._table[row]
        return self.arrays[number].read(place)

    def gather(self, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """(sum of the counts of `rows`, D): the region features of these images; see `FeatureStore.gather`."""
        filled = buffer_rows(out, int(self.counts[np.asarray(rows, dtype=np.int64)].sum()), self.dim, self.dtype)
        first = 0
        for row in rows:
            regions = self.read(int(row))
            filled[first : first + len(regions)] = regions
            first += len(regions)
        return filled

    def boxes(self, row: int) -> np.ndarray | None:
        """None: these files have no boxes."""
        return None


def open_features(source: Path | str, split: Split | None = None) -> RegionFeatures:
    """Open region features for reading.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> np.save(Path(folder.name, "dev_ims.npy"), np.ones((2, 36, 2048), np.float32))
    >>> _ = Path(folder.name, "dev_ids.txt").write_text("7\\n3\\n")
    >>> features = open_features(folder.name)
    >>> features.image_ids, features.dim
    (['7', '3'], 2048)
    >>> features.read(features.rows(["3"])[0]).shape
    (36, 2048)
    >>> features.gather(features.rows(["3", "7"])).shape
    (72, 2048)
    >>> folder.cleanup()

    Args:
        source: an HDF5 feature store, virtual or not; SCAN's array (`.npy`); or a folder that holds a store or
            arrays, of which `split` selects one.
        split: the images of an array; None reads their ids from the file beside it.

    Raises:
        InputError: there are no such features, or they are damaged or inconsistent.
        UsageError: a folder holds both a store and arrays.
    """
    source = Path(source)
    if not source.is_dir():
        return ScanFeatures(source, split) if source.suffix == ".npy" else FeatureStore(source)
    has_store, arrays = (source / STORE_NAME).is_file(), any(source.glob(f"*{ARRAY_SUFFIX}"))
    if has_store and arrays:
        raise UsageError(f"{source}: holds both {STORE_NAME} and *{ARRAY_SUFFIX}; fix: give one of these files")
    if has_store:
        return FeatureStore(source / STORE_NAME)
    return ScanFolder(source) if split is None else ScanFeatures(source / f"{split.name}{ARRAY_SUFFIX}", split)


def _open_array(path: Path) -> np.ndarray:
    try:
        path.open("rb").close()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise UnavailableError(f"{path}: cannot be opened: {one_line(error)}") from None
    with reading(path, "not a NumPy array file"):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path}: expected one array, found an archive of arrays")
    if array.ndim != 3 or array.dtype.kind != "f":
        raise InputError(
            f"{path}: expected floats of shape (images, regions, dim), found {array.dtype} {array.shape}"
        )
    if array.dtype.itemsize not in (2, 4, 8):
        raise InputError(f"{path}: holds {array.dtype}; fix: save it as float32 (array.astype('float32'))")
    if not array.size:
        raise InputError(f"{path}: holds no numbers: its shape is {array.shape}")
    return array


def _first_rows(path: Path, split: Split, rows: int) -> np.ndarray:
    """(N,) int64: the row of each image of the split in an array with `rows` rows."""
    images, captions = len(split.image_ids), len(split.captions)
    if rows not in (images, captions):
        raise InputError(
            f"{path}: holds {rows} rows; split {split.name} has {images} images and {captions} captions"
        )
    if rows == images:
        return np.arange(images)
    return np.unique(split.caption_images, return_index=True)[1]


def _ids_beside(path: Path, rows: int) -> tuple[list[str], np.ndarray]:
    """The distinct ids of `{split}_ids.txt` beside an array with `rows` rows, and the first row of each."""
    ids_file = path.with_name(path.name.removesuffix(".npy").removesuffix("_ims") + "_ids.txt")
    ids = read_ids(ids_file)
    first: dict[str, int] = {}
    for line, image_id in enumerate(ids):
        first.setdefault(image_id, line)
    if rows == len(first):
        return list(first), np.arange(rows)
    if rows == len(ids):
        return list(first), np.array(list(first.values()), dtype=np.int64)
    if rows == 5 * len(ids) == 5 * len(first):
        return ids, 5 * np.arange(len(ids))
    raise InputError(f"{path}: holds {rows} rows; {ids_file.name} has {len(first)} images in {len(ids)} lines")
