"""What a conversion reads: images of regions, one at a time, from any of the formats.

Shapes: N images, K regions of one image, D feature dimension.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Protocol

import numpy as np

from data_tools.errors import InputError
from data_tools.layout import load_id_mapping
from data_tools.store.features import ScanFeatures, ScanFolder
from data_tools.store.reading import FeatureStore, rows_of
from data_tools.store.schema import REGION_COLUMNS, Block, StoreSchema


class RegionSource(Protocol):
    """Regions by image. Only ids, counts and places in the file are in memory."""

    path: Path
    image_ids: list[str]
    counts: np.ndarray  # (N,) int64
    dim: int
    dtype: np.dtype  # float16 or float32
    region_columns: tuple[str, ...]  # which of `REGION_COLUMNS` each image has
    has_image_sizes: bool
    provenance: dict[str, str]
    failures: tuple[dict[str, str], ...]
    notes: list[str]  # what the user should hear about the source

    def image(self, row: int) -> Block:
        """One image."""


@dataclass
class Description:
    """The attributes of a `RegionSource`."""

    path: Path
    image_ids: list[str]
    counts: np.ndarray
    dim: int
    dtype: np.dtype
    region_columns: tuple[str, ...] = ()
    has_image_sizes: bool = False
    provenance: dict[str, str] = field(default_factory=dict)
    failures: tuple[dict[str, str], ...] = ()
    notes: list[str] = field(default_factory=list)


class StoreSource(Description):
    """The images of a feature store."""

    def __init__(self, path: Path) -> None:
        self.store = FeatureStore(path)
        shape = self.store.shape
        super().__init__(
            path,
            self.store.image_ids,
            self.store.counts,
            self.store.dim,
            self.store.dtype,
            shape.region_columns,
            shape.has_image_sizes,
            self.store.provenance,
            self.store.failures,
        )

    def image(self, row: int) -> Block:
        """One image."""
        return self.store.block(range(row, row + 1))


class ArraySource(Description):
    """The images of SCAN's arrays: features and nothing else.

    Raises:
        InputError: an image is in two arrays of the folder with different features.
    """

    def __init__(self, arrays: ScanFeatures | ScanFolder) -> None:
        self.arrays = arrays
        super().__init__(arrays.path, arrays.image_ids, arrays.counts, arrays.dim, arrays.dtype)
        for array in arrays.arrays if isinstance(arrays, ScanFolder) else []:
            for row, mine in enumerate(arrays.rows(array.image_ids)):
                if not np.array_equal(array.read(row), arrays.read(int(mine)), equal_nan=True):
                    raise InputError(
                        f"{array.path}: image {array.image_ids[row]} has other features than elsewhere"
                    )

    def image(self, row: int) -> Block:
        """One image."""
        features = self.arrays.read(row).astype(self.dtype, copy=False)
        return Block([self.image_ids[row]], np.array([len(features)]), {"features": features})


class Chosen(Description):
    """Some images of a source, in a given order, under given names."""

    def __init__(self, source: RegionSource, rows: np.ndarray, names: Sequence[str]) -> None:
        self._source, self._rows = source, rows
        super().__init__(
            source.path,
            list(names),
            source.counts[rows],
            source.dim,
            source.dtype,
            source.region_columns,
            source.has_image_sizes,
            dict(source.provenance),
            source.failures,
            source.notes,
        )

    def image(self, row: int) -> Block:
        """One image."""
        block = self._source.image(int(self._rows[row]))
        return Block([self.image_ids[row]], block.counts, block.regions, block.image_sizes)


class OfType(Chosen):
    """A source with its features in another type.

    An image whose features do not fit raises `InputError` when it is read.
    """

    def __init__(self, source: RegionSource, dtype: np.dtype) -> None:
        super().__init__(source, np.arange(len(source.image_ids)), source.image_ids)
        self.dtype = dtype

    def image(self, row: int) -> Block:
        """One image."""
        block = super().image(row)
        features = block.regions["features"]
        with np.errstate(over="ignore"):
            converted = features.astype(self.dtype, copy=False)
        if np.isinf(converted).sum() > np.isinf(features).sum():
            largest = np.abs(features[np.isfinite(features)]).max()
            raise InputError(
                f"{self.path}: image {self.image_ids[row]}: {largest:g} is too large for {self.dtype.name}"
            )
        return replace(block, regions={**block.regions, "features": converted})


def named_by_ids(source: RegionSource, mapping_file: Path) -> RegionSource:
    """The source with the ids of `id_mapping.json` where it names images by their files.

    A name may be the path in the mapping, the file's name, or that without its ending; an id is kept.

    Raises:
        InputError: a name is none of these, or that of several files.
    """
    mapping = load_id_mapping(mapping_file)
    ids_of: dict[str, set[str]] = {}
    for image_id, file in mapping.items():
        path = PurePosixPath(file)
        for name in {file, path.name, path.stem}:
            ids_of.setdefault(name, set()).add(image_id)
    names = []
    for name in source.image_ids:
        found = ids_of.get(name, {name} & mapping.keys())
        if len(found) != 1:
            said = "names no file" if not found else f"names {len(found)} files"
            raise InputError(f"{source.path}: image {name}: {said} of {mapping_file}")
        names.append(next(iter(found)))
    _check_unique(source, names)
    return Chosen(source, np.arange(len(names)), names)


def named_by_files(source: RegionSource, mapping_file: Path) -> RegionSource:
    """The source with the name of each image's file, without its ending, for its id.

    Raises:
        InputError: the mapping lacks an id, or two files have one name.
    """
    mapping: Mapping[str, str] = load_id_mapping(mapping_file)
    missing = [image_id for image_id in source.image_ids if image_id not in mapping]
    if missing:
        raise InputError(f"{mapping_file}: holds no file of image {missing[0]}")
    names = [PurePosixPath(mapping[image_id]).stem for image_id in source.image_ids]
    _check_unique(source, names)
    return Chosen(source, np.arange(len(names)), names)


def chosen_images(source: RegionSource, image_ids: Sequence[str]) -> RegionSource:
    """The images of these ids, in this order; `InputError` names one that the source lacks."""
    positions = {image_id: row for row, image_id in enumerate(source.image_ids)}
    return Chosen(source, rows_of(image_ids, positions, source.path), image_ids)


def _check_unique(source: RegionSource, names: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InputError(f"{source.path}: two images would be called {name}")
        seen.add(name)


def shape_of(source: RegionSource) -> StoreSchema:
    """The shape of the store that holds the source."""
    return StoreSchema(
        images=len(source.image_ids),
        regions=int(source.counts.sum()),
        dim=source.dim,
        feature_dtype=source.dtype.newbyteorder("<").str,
        region_columns=tuple(name for name in REGION_COLUMNS if name in source.region_columns),
        has_image_sizes=source.has_image_sizes,
        id_bytes=max((len(image_id.encode()) for image_id in source.image_ids), default=1),
    )
