"""Writing feature stores, with their features or virtual.

Shapes: N images, M regions in total, D feature dimension.
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from data_tools.files import check_space, reserve
from data_tools.store.probing import mark_known
from data_tools.store.schema import ALIGNMENT, FORMAT, FORMAT_VERSION, SOURCES, Block, StoreSchema

METADATA = 1 << 16  # bytes of a store besides its datasets


def write_store(path: Path, blocks: Iterable[Block], schema: StoreSchema, attributes: dict[str, str]) -> None:
    """Write blocks one after the other as one store.

    Datasets are contiguous, uncompressed, little-endian, allocated before they are filled and aligned to pages, so
    that the position of a region in the file can be computed.

    Args:
        path: written in place; the caller gives a temporary name and renames it.
        blocks: the images; all have the columns of `schema`.
        schema: datasets and sizes.
        attributes: provenance, text by name.

    Raises:
        InputError: the disk has no space for it.
        ValueError: the blocks have other numbers of images or regions than `schema`.
    """
    check_space(path, schema.size + METADATA)
    with _created(path) as file:
        file.attrs.update({"format": FORMAT, "format_version": FORMAT_VERSION, **attributes})
        columns = {name: _create(file, name, *kind) for name, kind in schema.datasets().items()}
        ends = ((each.id.get_offset() or 0) + each.id.get_storage_size() for each in columns.values())
        reserve(path, max(ends))
        _fill(file, columns, blocks, schema)
    mark_known(path)


def write_virtual_store(
    path: Path,
    blocks: Iterable[Block],
    schema: StoreSchema,
    attributes: dict[str, str],
    sources: Sequence[tuple[str, int]],
) -> None:
    """Write a virtual store: its features stay in other stores, all else is copied.

    Args:
        path: written in place; the caller gives a temporary name and renames it.
        blocks: the images without `features`.
        schema: datasets and sizes.
        attributes: provenance, text by name.
        sources: path and number of regions of each store with features, in the order of `blocks`. Relative paths
            start at the folder of `path`.

    Raises:
        ValueError: the blocks have other numbers of images or regions than `schema`.
    """
    layout = h5py.VirtualLayout((schema.regions, schema.dim), schema.feature_dtype)
    first = 0
    for source, regions in sources:
        if regions:
            source_features = h5py.VirtualSource(source, "features", (regions, schema.dim), schema.feature_dtype)
            layout[first : first + regions] = source_features
        first += regions
    with _created(path) as file:
        listing = json.dumps([source for source, _ in sources])
        file.attrs.update({"format": FORMAT, "format_version": FORMAT_VERSION, SOURCES: listing, **attributes})
        copied = {name: kind for name, kind in schema.datasets().items() if name != "features"}
        columns = {name: _create(file, name, *kind) for name, kind in copied.items()}
        file.create_virtual_dataset("features", layout)
        _fill(file, columns, blocks, schema)
    mark_known(path)


@contextmanager
def _created(path: Path) -> Iterator[h5py.File]:
    """A new HDF5 file, closed whatever happens: one that cannot be closed crashes the process at its end."""
    file = h5py.File(path, "w", alignment_threshold=1, alignment_interval=ALIGNMENT)
    try:
        yield file
        file.close()
    except BaseException:
        with suppress(OSError):
            os.truncate(path, 0)  # HDF5 needs space to close it, and a full disk has none
        with suppress(Exception):
            file.close()
        raise


def _fill(file: h5py.File, columns: dict[str, h5py.Dataset], blocks: Iterable[Block], schema: StoreSchema) -> None:
    columns["offsets"][0] = 0
    image, region = 0, 0
    failures: list[dict[str, str]] = []
    for block in blocks:
        next_image, next_region = image + len(block.image_ids), region + int(block.counts.sum())
        ids = [image_id.encode() for image_id in block.image_ids]
        if ids:
            columns["image_ids"][image:next_image] = np.array(ids, dtype=columns["image_ids"].dtype)
        columns["offsets"][image + 1 : next_image + 1] = region + np.cumsum(block.counts)
        if block.image_sizes is not None:
            columns["image_sizes"][image:next_image] = block.image_sizes
        for name, values in block.regions.items():
            columns[name][region:next_region] = values
        failures += block.failures
        image, region = next_image, next_region
    if failures:
        lines = [json.dumps(failure, ensure_ascii=False).encode() for failure in failures]
        file["failures"] = np.array(lines, dtype=h5py.string_dtype("utf-8", max(map(len, lines))))
    if (image, region) != (schema.images, schema.regions):
        raise ValueError(f"expected {schema.images} images and {schema.regions} regions, got {image} and {region}")


def _create(file: h5py.File, name: str, dtype: Any, shape: tuple[int, ...]) -> h5py.Dataset:
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_layout(h5py.h5d.CONTIGUOUS)
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    creation.set_fill_time(
        h5py.h5d.FILL_TIME_NEVER
    )  # every row is written once, so filling it with zeros first is superfluous
    creation.set_obj_track_times(False)
    kind = h5py.h5t.py_create(np.dtype(dtype), logical=True)
    space = h5py.h5s.create_simple(shape)
    return h5py.Dataset(h5py.h5d.create(file.id, name.encode(), kind, space, dcpl=creation))
