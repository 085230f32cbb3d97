"""Reading feature stores.

Shapes: N images, M regions in all, K regions of one image, D feature dimension.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from data_tools.errors import InputError
from data_tools.store.schema import FORMAT, FORMAT_VERSION, REGION_COLUMNS, SOURCES, Block, StoreSchema


class FeatureStore:
    """A store, opened for reading. Ids and offsets are loaded; all else is read on request.

    It can be pickled or inherited by other processes, each of which opens the file again. A context manager closes
    the file.

    Attributes:
        path: the file.
        provenance: how the features were made, text by name.
        sources: for a virtual store, the stores that hold its features; otherwise empty.
        image_ids: N ids, in the order of the rows.

    Raises:
        InputError: the file is missing, damaged, inconsistent, or of another format or version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._owner = -1
        file = self._file
        self.provenance = _checked_attributes(path, file)
        self.sources = _sources(path, self.provenance.pop(SOURCES, "[]"))
        self._check_datasets(file)
        try:
            self.image_ids = [_text(value) for value in file["image_ids"][:]]
        except UnicodeDecodeError:
            raise InputError(f"{path}: image_ids: not UTF-8 text") from None
        self._offsets: np.ndarray = file["offsets"][:]
        self._check_shapes(file)
        self._check_sources(file)
        self._positions = {image_id: row for row, image_id in enumerate(self.image_ids)}

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_owner": -1, "_open": None}

    @property
    def _file(self) -> h5py.File:
        if self._owner != os.getpid():  # HDF5 handles do not survive a fork
            self._open = _open_for_reading(self.path)
            self._owner = os.getpid()
        return self._open

    def _check_datasets(self, file: h5py.File) -> None:
        needed = {"image_ids": (1, "OS"), "offsets": (1, "i"), "features": (2, "f")}
        for name, (dimensions, kinds) in needed.items():
            found = file.get(name)
            if not isinstance(found, h5py.Dataset) or found.ndim != dimensions or found.dtype.kind not in kinds:
                expected = {"O": "text", "i": "integers", "f": "floats"}[kinds[0]]
                raise InputError(
                    f"{self.path}: expected a dataset {name} of {expected} with {dimensions} dimension(s)"
                )

    def _check_shapes(self, file: h5py.File) -> None:
        images, regions = len(self.image_ids), len(file["features"])
        offsets = self._offsets
        if (
            offsets.shape != (images + 1,)
            or offsets[0] != 0
            or offsets[-1] != regions
            or (np.diff(offsets) < 0).any()
        ):
            raise InputError(
                f"{self.path}: offsets: expected {images + 1} numbers that rise from 0 to {regions} "
                f"for {images} images and {regions} regions"
            )
        if len(set(self.image_ids)) != images:
            raise InputError(f"{self.path}: image_ids: an id is repeated")
        for name, (_, trailing) in REGION_COLUMNS.items():
            if name in file and getattr(file[name], "shape", None) != (regions, *trailing):
                raise InputError(f"{self.path}: {name}: expected the shape {(regions, *trailing)}")
        if "image_sizes" in file and getattr(file["image_sizes"], "shape", None) != (images, 2):
            raise InputError(f"{self.path}: image_sizes: expected the shape {(images, 2)}")

    def _check_sources(self, file: h5py.File) -> None:
        """Check that all sources exist unchanged: HDF5 reads a missing source of a virtual dataset as zeros."""
        if file["features"].is_virtual != bool(self.sources):
            raise InputError(
                f"{self.path}: its attribute {SOURCES} does not list the files that hold its features"
            )
        image = 0
        for source in self.sources:
            if not source.is_file():
                raise InputError(f"{self.path}: {source}, which holds its features, does not exist")
            with FeatureStore(source) as store:
                images = slice(image, image + len(store))
                same = store.image_ids == self.image_ids[images] and np.array_equal(
                    store.counts, self.counts[images]
                )
                if not same or (store.dim, store.dtype) != (self.dim, self.dtype):
                    raise InputError(
                        f"{self.path}: {source}, which holds its features, was changed after joining; "
                        "fix: run data-tools join --virtual again"
                    )
                image += len(store)
        if self.sources and image != len(self.image_ids):
            raise InputError(f"{self.path}: its sources hold {image} images; it has {len(self.image_ids)} ids")

    @property
    def dim(self) -> int:
        """D."""
        return int(self._file["features"].shape[1])

    @property
    def dtype(self) -> np.dtype:
        """Of the features: float16 or float32 in native byte order."""
        return self._file["features"].dtype.newbyteorder("=")

    @property
    def counts(self) -> np.ndarray:
        """(N,) int64: regions of each image."""
        return np.diff(self._offsets)

    @property
    def datasets(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape and type of every dataset in the file, by name."""
        return {k: (item.shape, item.dtype) for k, item in self._file.items() if isinstance(item, h5py.Dataset)}

    @property
    def failures(self) -> tuple[dict[str, str], ...]:
        """Images that could not be extracted, each with `id`, `file` and `reason`."""
        lines = self._file["failures"][:] if "failures" in self._file else []
        return tuple(json.loads(_text(line)) for line in lines)

    def rows(self, image_ids: Sequence[str]) -> np.ndarray:
        """(n,) int64: the row of each of these images; `InputError` names one that is missing."""
        return find_rows(image_ids, self._positions, self.path)

    def read(self, row: int) -> np.ndarray:
        """(K, D): the region features of one image, as stored."""
        return self._column("features", row)

    def gather(self, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """(sum of the counts of `rows`, D): the region features of several images, one image after the other.

        Args:
            rows: (n,) integers in any order; they may repeat.
            out: C-ordered buffer of any float type with D columns and at least as many rows as needed; its first
                rows are filled and returned. Without it, a new array of the stored type is returned.

        Raises:
            ValueError: `out` has too few rows or another number of columns.
        """
        rows = np.asarray(rows, dtype=np.int64)
        starts, ends = self._offsets[rows], self._offsets[rows + 1]
        filled = buffer_rows(out, int((ends - starts).sum()), self.dim, self.dtype)
        dataset, position = self._file["features"], 0
        for first, last in _runs(starts, ends):
            filled[position : position + last - first] = dataset[first:last]
            position += last - first
        return filled

    def boxes(self, row: int) -> np.ndarray | None:
        """(K, 4) float32 x1 y1 x2 y2 in pixels of the upright original; None if the store has no boxes."""
        return self._column("boxes", row) if "boxes" in self._file else None

    def gather_column(self, name: str, rows: np.ndarray) -> np.ndarray:
        """(sum of the counts of `rows`, ...): one of `REGION_COLUMNS` for several images, one after the other.

        Raises:
            KeyError: the store has no such column.
        """
        return np.concatenate([self._column(name, row) for row in rows.tolist()])

    @property
    def image_sizes(self) -> np.ndarray | None:
        """(N, 2) int32 height and width of each image in pixels; None if the store has no sizes."""
        return self._file["image_sizes"][:] if "image_sizes" in self._file else None

    def _column(self, name: str, row: int) -> np.ndarray:
        rows = self._file[name][self._offsets[row] : self._offsets[row + 1]]
        return rows.astype(rows.dtype.newbyteorder("="), copy=False)  # torch reads native byte order only

    def block(self, images: range | None = None, features: bool = True) -> Block:
        """Read the whole store, or consecutive images of it.

        Args:
            images: rows to read, without a step; None reads all, and the failures.
            features: whether to read the features too.
        """
        first, last = (0, len(self)) if images is None else (images.start, images.stop)
        regions = slice(self._offsets[first], self._offsets[last])
        names = [name for name in ("features", *REGION_COLUMNS) if name in self._file]
        return Block(
            image_ids=self.image_ids[first:last],
            counts=self.counts[first:last],
            regions={name: self._file[name][regions] for name in names if features or name != "features"},
            image_sizes=self._file["image_sizes"][first:last] if "image_sizes" in self._file else None,
            failures=self.failures if images is None else (),
        )

    def blocks(self, images: int = 256, features: bool = True) -> Iterator[Block]:
        """The whole store in blocks of `images` images; a last block without images has the failures."""
        for first in range(0, len(self), images):
            yield self.block(range(first, min(first + images, len(self))), features)
        empty = self.block(range(len(self), len(self)), features)
        yield replace(empty, failures=self.failures)

    @property
    def schema(self) -> StoreSchema:
        """The schema with which a copy of this store would be created."""
        return StoreSchema(
            images=len(self.image_ids),
            regions=int(self._offsets[-1]),
            dim=self.dim,
            feature_dtype=self._file["features"].dtype.str,
            region_columns=tuple(name for name in REGION_COLUMNS if name in self._file),
            has_image_sizes="image_sizes" in self._file,
            id_bytes=max((len(image_id.encode()) for image_id in self.image_ids), default=1),
        )

    def __enter__(self) -> "FeatureStore":
        return self

    def __exit__(self, *_: object) -> None:
        if self._owner == os.getpid():
            self._open.close()
        self._owner = -1


def buffer_rows(out: np.ndarray | None, rows: int, dim: int, dtype: np.dtype) -> np.ndarray:
    """The first `rows` rows of `out`, or a new array (rows, dim); `ValueError` if `out` does not fit."""
    if out is None:
        return np.empty((rows, dim), dtype)
    if out.ndim != 2 or out.shape[1] != dim or len(out) < rows or out.dtype.kind != "f":
        raise ValueError(f"expected a buffer of floats of at least ({rows}, {dim}), got {out.dtype} {out.shape}")
    return out[:rows]


def _runs(starts: np.ndarray, ends: np.ndarray) -> Iterator[tuple[int, int]]:
    """(first, last) of the reads that cover these ranges in order; adjacent ranges become one read."""
    if not len(starts):
        return
    breaks = np.flatnonzero(starts[1:] != ends[:-1]) + 1
    firsts = starts[np.concatenate([[0], breaks])]
    lasts = ends[np.concatenate([breaks - 1, [len(ends) - 1]])]
    yield from zip(firsts.tolist(), lasts.tolist(), strict=True)


def find_rows(image_ids: Sequence[str], positions: dict[str, int], path: Path) -> np.ndarray:
    """(n,) int64: the position of each image; `InputError` names the first that is missing from `path`."""
    missing = [image_id for image_id in image_ids if image_id not in positions]
    if missing:
        raise InputError(
            f"{path}: holds no features of image {missing[0]}"
            + (f" and {len(missing) - 1} others of the {len(image_ids)} asked for" if len(missing) > 1 else "")
        )
    return np.array([positions[image_id] for image_id in image_ids], dtype=np.int64)


def _open_for_reading(path: Path) -> h5py.File:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        return h5py.File(path, "r", locking="best-effort")  # some network file systems do not support locks
    except OSError:
        raise InputError(f"{path}: not a readable HDF5 file (damaged, truncated, or another format)") from None


def _checked_attributes(path: Path, file: h5py.File) -> dict[str, str]:
    attributes = dict(file.attrs)
    found = attributes.pop("format", None), attributes.pop("format_version", None)
    if not isinstance(found[0], str) or found[0] != FORMAT:
        raise InputError(f"{path}: not a feature store: its attribute format is {found[0]!r}, expected {FORMAT!r}")
    if np.ndim(found[1]) or found[1] != FORMAT_VERSION:
        raise InputError(f"{path}: format version {found[1]}; this program reads version {FORMAT_VERSION}")
    return {name: str(value) for name, value in attributes.items()}


def _sources(path: Path, listing: str) -> list[Path]:
    """The stores that hold the features of a virtual one; relative paths start at its folder."""
    try:
        names = json.loads(listing)
        return [path.parent / name for name in names]
    except (ValueError, TypeError):
        raise InputError(f"{path}: its attribute {SOURCES} must be a JSON list of file names") from None


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
