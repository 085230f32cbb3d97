"""Reading region features one image at a time, from any format.

Shapes: N images, K regions of one image, D feature dimension.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import numpy as np

from data_tools.errors import InputError
from data_tools.layout import load_id_mapping
from data_tools.store.features import ScanFeatures, ScanFolder
from data_tools.store.reading import FeatureStore, find_rows
from data_tools.store.schema import REGION_COLUMNS, Block, StoreSchema


@dataclass
class RegionSource(ABC):
    """Images with their regions, in a file or folder of any format; only `image` reads the regions.

    Attributes:
        path: the file or folder.
        image_ids: N ids.
        counts: (N,) int64, regions of each image.
        dim: D.
        dtype: of the features, float16 or float32.
        region_columns: which of `REGION_COLUMNS` each image has.
        has_image_sizes: whether each image has its height and width.
        provenance: how the features were made; empty where the format does not say.
        failures: images that could not be extracted, with `id`, `file` and `reason`.
        notes: what the user should know about the source, one line each.
    """

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

    @abstractmethod
    def image(self, row: int) -> Block:
        """The image at position `row` of `image_ids`, as a block of one image.

        Raises:
            InputError: the data of the image is damaged.
        """


class StoreSource(RegionSource):
    """The images of a feature store."""

    def __init__(self, path: Path) -> None:
        self.store = FeatureStore(path)
        schema = self.store.schema
        super().__init__(
            path,
            self.store.image_ids,
            self.store.counts,
            self.store.dim,
            self.store.dtype,
            schema.region_columns,
            schema.has_image_sizes,
            self.store.provenance,
            self.store.failures,
        )

    def image(self, row: int) -> Block:
        """One image; see `RegionSource.image`."""
        return self.store.block(range(row, row + 1))


class ArraySource(RegionSource):
    """The images of SCAN's arrays, which hold features only.

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
                        f"{array.path}: image {array.image_ids[row]} has other features than in another array"
                    )

    def image(self, row: int) -> Block:
        """One image; see `RegionSource.image`."""
        features = self.arrays.read(row).astype(self.dtype, copy=False)
        return Block([self.image_ids[row]], np.array([len(features)]), {"features": features})


class SelectedImages(RegionSource):
    """Images of a source in a given order, with given ids.

    Args:
        source: where the images are read from.
        rows: (n,) int64, positions of the images in `source`.
        image_ids: n ids.
    """

    def __init__(self, source: RegionSource, rows: np.ndarray, image_ids: Sequence[str]) -> None:
        self._source, self._rows = source, rows
        super().__init__(
            source.path,
            list(image_ids),
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
        """One image; see `RegionSource.image`."""
        block = self._source.image(int(self._rows[row]))
        return Block([self.image_ids[row]], block.counts, block.regions, block.image_sizes)


class WithFeatureType(SelectedImages):
    """A source with its features converted to another type.

    Reading an image raises `InputError` if one of its features is too large for the type.
    """

    def __init__(self, source: RegionSource, dtype: np.dtype) -> None:
        super().__init__(source, np.arange(len(source.image_ids)), source.image_ids)
        self.dtype = dtype

    def image(self, row: int) -> Block:
        """One image; see `RegionSource.image`."""
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
    """Replace file names as ids by the ids of `id_mapping.json`.

    A file name may be the path in the mapping, the file's name, or its name without extension. What is already an
    id of the mapping stays as it is.

    Raises:
        InputError: a name matches no file of the mapping, or more than one.
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
            said = "matches no file" if not found else f"matches {len(found)} files"
            raise InputError(f"{source.path}: image {name}: {said} of {mapping_file}")
        names.append(next(iter(found)))
    _check_unique(source, names)
    return SelectedImages(source, np.arange(len(names)), names)


def named_by_files(source: RegionSource, mapping_file: Path) -> RegionSource:
    """Replace each id by the name of the image's file without extension.

    Raises:
        InputError: the mapping lacks an id, or two files have the same name.
    """
    mapping: Mapping[str, str] = load_id_mapping(mapping_file)
    missing = [image_id for image_id in source.image_ids if image_id not in mapping]
    if missing:
        raise InputError(f"{mapping_file}: lacks image {missing[0]} of {source.path}")
    names = [PurePosixPath(mapping[image_id]).stem for image_id in source.image_ids]
    _check_unique(source, names)
    return SelectedImages(source, np.arange(len(names)), names)


def select_images(source: RegionSource, image_ids: Sequence[str]) -> RegionSource:
    """The images with these ids, in this order; `InputError` names one that the source lacks."""
    positions = {image_id: row for row, image_id in enumerate(source.image_ids)}
    return SelectedImages(source, find_rows(image_ids, positions, source.path), image_ids)


def _check_unique(source: RegionSource, names: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InputError(f"{source.path}: two images would have the id {name}")
        seen.add(name)


def schema_of(source: RegionSource) -> StoreSchema:
    """The schema of a store with the images of the source."""
    return StoreSchema(
        images=len(source.image_ids),
        regions=int(source.counts.sum()),
        dim=source.dim,
        feature_dtype=source.dtype.newbyteorder("<").str,
        region_columns=tuple(name for name in REGION_COLUMNS if name in source.region_columns),
        has_image_sizes=source.has_image_sizes,
        id_bytes=max((len(image_id.encode()) for image_id in source.image_ids), default=1),
    )
