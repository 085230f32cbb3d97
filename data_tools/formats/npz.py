"""The archives of MILVLG's bottom-up-attention.pytorch, one per image: `{image}.npz`.

Arrays: `x` (K, D) float32, `bbox` (K, 4) float32, `num_bbox`, `image_h`, `image_w`. The entry `info` is a pickled
dictionary (classes, scores) and is never loaded.
"""

import io
import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.errors import InputError, UsageError, reading
from data_tools.files import replace_file
from data_tools.formats.source import RegionSource
from data_tools.store.schema import Block

MAX_ARRAY = 1 << 30  # bytes of one array of one image: 100 regions of 2,048 float32 take 0.8 MB


class NpzSource(RegionSource):
    """The archives of a folder in the order of their names, which without `.npz` are the ids.

    Opening it reads the headers of the arrays only.

    Raises:
        InputError: the folder has no archive, or one is damaged, lacks an array or differs from the first one in
            feature dimension, type or image size.
    """

    def __init__(self, folder: Path) -> None:
        self._files = sorted(folder.glob("*.npz"))
        if not self._files:
            raise InputError(f"{folder}: holds no archive (*.npz)")
        counts, first = [], None
        for file in self._files:
            layout = _read_layout(file)
            first = first or layout
            if layout[1:] != first[1:]:
                raise InputError(
                    f"{file}: {_layout_text(*layout[1:])}; {self._files[0].name} has {_layout_text(*first[1:])}"
                )
            counts.append(layout[0])
        assert first is not None
        _, dim, dtype, has_sizes = first
        super().__init__(
            folder,
            [file.stem for file in self._files],
            np.array(counts, dtype=np.int64),
            dim,
            dtype,
            region_columns=("boxes",),
            has_image_sizes=has_sizes,
            notes=[f"{folder}: without classes and scores: the pickled info of the archives is not read"],
        )

    def image(self, row: int) -> Block:
        """One image; see `RegionSource.image`."""
        file, count = self._files[row], int(self.counts[row])
        names = ["x", "bbox", *(["image_h", "image_w"] if self.has_image_sizes else [])]
        found = {name: _array(file, name) for name in names}
        boxes = found["bbox"]
        if boxes.shape != (count, 4) or boxes.dtype.kind not in "fiu":
            raise InputError(f"{file}: bbox: expected ({count}, 4) numbers, found {boxes.dtype} {boxes.shape}")
        size = None
        if self.has_image_sizes:
            size = np.array([[_number(file, name, found[name]) for name in ("image_h", "image_w")]], np.int32)
            if (size < 1).any():
                raise InputError(f"{file}: expected a positive height and width, found {size[0].tolist()}")
        if found["x"].shape != (count, self.dim):
            raise InputError(f"{file}: x: was changed while it was read")
        features = found["x"].astype(found["x"].dtype.newbyteorder("="), copy=False)
        regions = {"features": features, "boxes": boxes.astype(np.float32)}
        return Block([self.image_ids[row]], np.array([count]), regions, size)


def write_npz(folder: Path, source: RegionSource, advance: Callable[[], None]) -> None:
    """Write one archive per image into `folder`.

    Args:
        folder: created if it does not exist.
        source: the images; they need boxes and image sizes.
        advance: called after each image.

    Raises:
        UsageError: the source has no boxes or no image sizes.
        InputError: an id cannot be a file name.
    """
    if "boxes" not in source.region_columns or not source.has_image_sizes:
        raise UsageError(f"{source.path}: lacks boxes or image_sizes, which MILVLG's archives need")
    for image_id in source.image_ids:
        if image_id in (".", "..") or any(mark in image_id for mark in "/\\\0") or len(image_id.encode()) > 240:
            raise InputError(f"{source.path}: image {image_id!r}: the id cannot be a file name")
    for row, image_id in enumerate(source.image_ids):
        block = source.image(row)
        assert block.image_sizes is not None
        buffer = io.BytesIO()
        np.savez(
            buffer,
            x=block.regions["features"],
            bbox=block.regions["boxes"],
            num_bbox=block.counts[0],
            image_h=block.image_sizes[0, 0],
            image_w=block.image_sizes[0, 1],
        )
        replace_file(folder / f"{image_id}.npz", buffer.getvalue())
        advance()


def _read_layout(file: Path) -> tuple[int, int, np.dtype, bool]:
    """Number of regions, feature dimension, feature type and whether there is an image size, from the headers."""
    with _archive(file) as archive:
        names = {name.removesuffix(".npy") for name in archive.namelist()}
        missing = [name for name in ("x", "bbox") if name not in names]
        if missing:
            raise InputError(f"{file}: lacks {' and '.join(missing)}; it has {', '.join(sorted(names))}")
        shape, dtype = _header(file, archive, "x")
    if len(shape) != 2 or dtype.kind != "f" or dtype.itemsize > 4:
        raise InputError(f"{file}: x: expected floats of shape (regions, dim), found {dtype} {shape}")
    if "num_bbox" in names and _number(file, "num_bbox", _array(file, "num_bbox")) != shape[0]:
        raise InputError(f"{file}: num_bbox is {_array(file, 'num_bbox')}; x holds {shape[0]} regions")
    return shape[0], shape[1], dtype.newbyteorder("="), {"image_h", "image_w"} <= names


def _archive(file: Path) -> zipfile.ZipFile:
    with reading(file, "not a NumPy archive"):
        return zipfile.ZipFile(file)


def _header(file: Path, archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype]:
    with reading(file, f"{name}: damaged"), archive.open(f"{name}.npy") as member:
        version = np.lib.format.read_magic(member)
        read: Any = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read(member)
    claimed = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or claimed > min(archive.getinfo(f"{name}.npy").file_size, MAX_ARRAY):
        raise InputError(f"{file}: {name}: its shape {shape} does not fit its size in the archive")
    return shape, dtype


def _array(file: Path, name: str) -> np.ndarray:
    with _archive(file) as archive:
        _header(file, archive, name)  # what it claims is checked before memory is taken for it
        with reading(file, f"{name}: damaged"), archive.open(f"{name}.npy") as member:
            array: np.ndarray = np.lib.format.read_array(member, allow_pickle=False)
            return array


def _number(file: Path, name: str, array: np.ndarray) -> int:
    if array.size != 1 or array.dtype.kind not in "iuf":
        raise InputError(f"{file}: {name}: expected one number, found {array.dtype} {array.shape}")
    number = array.reshape(()).item()
    if not 0 <= number < 2**31 or number != int(number):  # NaN is not in the range
        raise InputError(f"{file}: {name}: expected a whole number that is not negative, found {number}")
    return int(number)


def _layout_text(dim: int, dtype: np.dtype, has_sizes: bool) -> str:
    return f"{dtype} features of {dim} numbers, {'with' if has_sizes else 'without'} image sizes"
