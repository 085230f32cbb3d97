"""Reading feature stores.

Shapes: N images, M regions in all, K regions of one image, D feature dimension.
"""

import errno
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from data_tools.errors import InputError, UnavailableError, reading
from data_tools.store.probing import DAMAGED, check_first
from data_tools.store.schema import REGION_COLUMNS, SOURCES, Block, StoreSchema, known_boxes
from data_tools.store.structure import (
    check_mapping,
    checked_attributes,
    checked_datasets,
    checked_sources,
    printable,
)

_UNAVAILABLE = {  # what says nothing about the content of a file
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EAGAIN: "locked by a process that writes it; fix: wait until that has ended",
    errno.EMFILE: "too many open files; fix: raise the limit (ulimit -n)",
    errno.ENFILE: "too many open files on this machine",
    errno.EIO: "the disk or network reports an input/output error",
}


class FeatureStore:
    """A store, opened for reading. Ids and offsets are loaded; all else is read on request.

    It can be pickled or inherited by other processes, each of which opens the file again. A context manager closes
    the file.

    Attributes:
        path: the file.
        provenance: how the features were made, text by name.
        sources: for a virtual store, the stores that hold its features; otherwise empty.
        image_ids: N ids, in the order of the rows.
        failures: images that could not be extracted, each with `id` and mostly `file` and `reason`.

    Raises:
        InputError: the file is missing, damaged, inconsistent, or of another format or version.
        UnavailableError: it cannot be opened now: no permission, locked, too many open files.
    """

    def __init__(self, path: Path, source_of: Path | None = None) -> None:
        """Open and check a store.

        Args:
            path: the file.
            source_of: the virtual store whose features it holds; it may not be virtual then.
        """
        self.path = path
        self._owner = -1
        check_first([path])
        with reading(path, DAMAGED):
            file = self._file
            self.provenance = checked_attributes(path, file)
            named = checked_sources(path, self.provenance.pop(SOURCES, "[]"))
            if named and source_of:
                raise InputError(f"{source_of}: {path}, which should hold its features, is virtual itself")
            columns = checked_datasets(path, file, virtual=bool(named))
            ids, self._offsets = columns["image_ids"][:], columns["offsets"][:].astype(np.int64)
            failures = columns["failures"][:] if "failures" in columns else []
            sizes = columns["image_sizes"][:] if "image_sizes" in columns else np.ones(1)
        self.datasets = {name: (column.shape, column.dtype) for name, column in sorted(columns.items())}
        self.sources = [source for _, source in named]
        self.image_ids = _texts(path, "image_ids", ids)
        self.failures = _failures(path, _texts(path, "failures", failures))
        self._check_numbers(sizes)
        self._check_sources(named)
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

    def _check_numbers(self, sizes: np.ndarray) -> None:
        images, regions = len(self.image_ids), self.datasets["features"][0][0]
        offsets = self._offsets
        if (
            offsets[0] != 0 or offsets[-1] != regions or (offsets[1:] < offsets[:-1]).any()
        ):  # a difference may wrap
            raise InputError(
                f"{self.path}: offsets: expected {images + 1} numbers that rise from 0 to {regions} "
                f"for {images} images and {regions} regions"
            )
        if len(set(self.image_ids)) != images:
            raise InputError(f"{self.path}: image_ids: an id is repeated")
        if (sizes < 1).any():
            row = int((sizes < 1).any(axis=1).argmax())
            found = sizes[row].tolist()
            raise InputError(
                f"{self.path}: image_sizes: image {self.image_ids[row]}: expected positive numbers, found {found}"
            )

    def _check_sources(self, named: Sequence[tuple[str, Path]]) -> None:
        """Check that all sources exist unchanged: HDF5 reads a missing source of a virtual dataset as zeros."""
        for _, source in named:
            if not source.is_file():
                raise InputError(f"{self.path}: {source}, which holds its features, does not exist")
        check_first(self.sources)
        image, regions = 0, []
        for name, source in named:
            with FeatureStore(source, source_of=self.path) as store:
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
                regions.append((name, int(store.counts.sum())))
        if named and image != len(self.image_ids):
            raise InputError(f"{self.path}: its sources hold {image} images; it has {len(self.image_ids)} ids")
        if named:
            with reading(self.path, DAMAGED):
                check_mapping(self.path, self._file["features"], regions)

    @property
    def dim(self) -> int:
        """D."""
        return int(self.datasets["features"][0][1])

    @property
    def dtype(self) -> np.dtype:
        """Of the features: float16 or float32 in native byte order."""
        return self.datasets["features"][1].newbyteorder("=")

    @property
    def counts(self) -> np.ndarray:
        """(N,) int64: regions of each image."""
        return np.diff(self._offsets)

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
        with reading(self.path, "features cannot be read"):
            dataset, position = self._file["features"], 0
            for first, last in _runs(starts, ends):
                filled[position : position + last - first] = dataset[first:last]
                position += last - first
        return filled

    def boxes(self, row: int) -> np.ndarray | None:
        """(K, 4) float32 x1 y1 x2 y2 in pixels of the upright original; None if the store has no boxes.

        A region whose `box_confidence` is 0 has no box: NaN.
        """
        names = [name for name in ("boxes", "box_confidence") if name in self.datasets]
        return known_boxes({name: self._column(name, row) for name in names})

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
        with reading(self.path, f"{name} cannot be read"):
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
        names = [name for name in ("features", *REGION_COLUMNS) if name in self.datasets]
        with reading(self.path, "its regions cannot be read"):
            columns = {name: self._file[name][regions] for name in names if features or name != "features"}
            sizes = self._file["image_sizes"][first:last] if "image_sizes" in self.datasets else None
        return Block(
            image_ids=self.image_ids[first:last],
            counts=self.counts[first:last],
            regions=columns,
            image_sizes=sizes,
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
            feature_dtype=self.datasets["features"][1].str,
            region_columns=tuple(name for name in REGION_COLUMNS if name in self.datasets),
            has_image_sizes="image_sizes" in self.datasets,
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
    try:
        return h5py.File(path, "r", locking="best-effort")  # some network file systems do not support locks
    except OSError as error:
        reason = _UNAVAILABLE.get(error.errno or 0)
        if reason:
            raise UnavailableError(f"{path}: cannot be opened: {reason}") from None
        raise InputError(f"{path}: {DAMAGED}") from None


def _texts(path: Path, name: str, values: Sequence[bytes | str]) -> list[str]:
    """The values of a dataset of text; h5py gives text of any length as `bytes` too."""
    try:
        texts = [value.decode() if isinstance(value, bytes) else value for value in values]
        "".join(texts).encode()
    except UnicodeError:
        raise InputError(f"{path}: {name}: not UTF-8 text") from None
    return texts


def _failures(path: Path, lines: Sequence[str]) -> tuple[dict[str, str], ...]:
    failures = []
    for row, line in enumerate(lines):
        try:
            failure = json.loads(line)
        except (ValueError, RecursionError):
            failure = None
        if not isinstance(failure, dict) or "id" not in failure or not _are_texts(failure.values()):
            raise InputError(f'{path}: failures: row {row}: expected {{"id": ..., "file": ..., "reason": ...}}')
        failures.append(failure)
    return tuple(failures)


def _are_texts(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) and printable(value) == value for value in values)
