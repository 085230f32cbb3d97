"""What the file of a store must be before it is used: its attributes, and its datasets by their layout.

Everything here reads metadata only. What a file claims is compared with its size, so that no claim takes memory,
and nothing is followed out of the file: no external storage, no links, no virtual dataset but declared ones.
"""

import json
import math
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from data_tools.errors import InputError
from data_tools.store.schema import FORMAT, FORMAT_VERSION, REGION_COLUMNS, SOURCES

MAX_ATTRIBUTES = 1000
MAX_TEXT = 16 << 20  # bytes of one attribute
MAX_DIM = 1_000_000  # numbers per region
MAX_RATIO = 1040  # of a chunk to what is stored of it: more than deflate can reach
_FILTERS = {
    1: "deflate",
    2: "shuffle",
    3: "fletcher32",
    32000: "lzf",
}  # that HDF5 undoes without trusting the data
_NEEDED = ("image_ids", "offsets", "features")
DATASETS = (*_NEEDED, "image_sizes", *REGION_COLUMNS, "failures")  # no other is looked at


def checked_attributes(path: Path, file: h5py.File) -> dict[str, str]:
    """The provenance, text by name, of a store of this format and version.

    Raises:
        InputError: the file is another format or version, or an attribute is no short text.
    """
    if h5py.h5a.get_num_attrs(file.id) > MAX_ATTRIBUTES:
        raise InputError(f"{path}: expected at most {MAX_ATTRIBUTES} attributes")
    attributes = {name: _attribute(path, file, name) for name in file.attrs}
    found = attributes.pop("format", None), attributes.pop("format_version", None)
    if not isinstance(found[0], str) or found[0] != FORMAT:
        raise InputError(
            f"{path}: not a feature store: its attribute format is {str(found[0])[:80]!r}, expected {FORMAT!r}"
        )
    if found[1] != FORMAT_VERSION:
        raise InputError(
            f"{path}: format version {str(found[1])[:80]}; this program reads version {FORMAT_VERSION}"
        )
    return {name: str(value) for name, value in attributes.items()}


def _attribute(path: Path, file: h5py.File, name: str) -> Any:
    attribute = file.attrs.get_id(name)
    kind = attribute.dtype
    is_text = h5py.check_string_dtype(kind) is not None
    if attribute.shape != () or not (is_text or kind.kind in "iufb") or attribute.get_storage_size() > MAX_TEXT:
        raise InputError(f"{path}: attribute {printable(name)}: expected one text")
    value = file.attrs[name]
    text = value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value
    if not is_text:
        return text
    if len(text) > MAX_TEXT or printable(text) != text or printable(name) != name:
        raise InputError(f"{path}: attribute {printable(name)[:80]}: expected UTF-8 text of at most 16 MB")
    return str(text)


def printable(text: str) -> str:
    """The text with bytes that are not UTF-8 replaced, as a terminal or file can take it."""
    return text.encode("utf-8", "replace").decode()


def checked_sources(path: Path, listing: str) -> list[tuple[str, Path]]:
    """Name and file of each store that holds the features of a virtual one; relative ones start at its folder.

    Raises:
        InputError: the attribute is not a list of different file names.
    """
    try:
        names = json.loads(listing)
        valid = isinstance(names, list) and all(isinstance(name, str) and "\0" not in name for name in names)
        if not valid or len(set(names)) != len(names) or any(printable(name) != name for name in names):
            raise ValueError
    except (ValueError, RecursionError):
        raise InputError(f"{path}: its attribute {SOURCES} must be a JSON list of file names") from None
    return [(name, path.parent / name) for name in names]


def checked_datasets(path: Path, file: h5py.File, virtual: bool) -> dict[str, h5py.Dataset]:
    """The datasets of the format by name, each of its type and shape and wholly inside the file.

    Args:
        path: of the file, for messages.
        file: the open file.
        virtual: whether `features` is virtual; its mapping is checked by `check_mapping`.

    Raises:
        InputError: a dataset is missing, of another type or shape, or not inside the file.
    """
    present = [name for name in DATASETS if name in _NEEDED or _has(file, name)]
    found = {name: _typed(path, name, _linked(path, file, name)) for name in present}
    (images,), (regions, dim) = found["image_ids"].shape, found["features"].shape
    if dim > MAX_DIM or (regions and not dim and "boxes" not in found):  # without numbers where boxes bound them
        raise InputError(f"{path}: features: expected 1 to {MAX_DIM} numbers per region, found {dim}")
    shapes = {name: (regions, *trailing) for name, (_, trailing) in REGION_COLUMNS.items()}
    shapes |= {"image_sizes": (images, 2)}
    for name, dataset in found.items():
        if dataset.shape != shapes.get(name, dataset.shape):
            raise InputError(f"{path}: {name}: expected the shape {shapes[name]}")
    if found["offsets"].shape != (images + 1,):
        raise InputError(
            f"{path}: offsets: expected {images + 1} numbers that rise from 0 to {regions} "
            f"for {images} images and {regions} regions"
        )
    for name, dataset in found.items():
        if dataset.is_virtual != (virtual and name == "features"):
            raise InputError(
                f"{path}: {name}: its attribute {SOURCES} does not list the files that hold its {name}"
            )
        if not dataset.is_virtual:
            _check_storage(path, name, dataset, os.fstat(file.id.get_vfd_handle()).st_size)
    return found


def _has(file: h5py.File, name: str) -> bool:
    return bool(file.id.links.exists(name.encode()))


def _linked(path: Path, file: h5py.File, name: str) -> h5py.Dataset | None:
    """The dataset of that name, unless a link leads to it; None for what is no dataset."""
    if not _has(file, name):
        return None
    if file.id.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
        raise InputError(f"{path}: {name}: expected a dataset in the file itself, found a link")
    found = file[name]
    return found if isinstance(found, h5py.Dataset) else None


def _typed(path: Path, name: str, dataset: h5py.Dataset | None) -> h5py.Dataset:
    kinds: dict[str, tuple[int, str]] = {"image_ids": (1, "text"), "failures": (1, "text")}
    kinds |= {"offsets": (1, "integers"), "features": (2, "floats")}
    kinds |= {"image_sizes": (2, "int32")}
    kinds |= {column: (1 + len(shape), np.dtype(kind).name) for column, (kind, shape) in REGION_COLUMNS.items()}
    rank, kind = kinds[name]
    if dataset is not None and dataset.shape is not None and dataset.ndim == rank:
        dtype = dataset.dtype
        if kind == "text":
            fits = h5py.check_string_dtype(dtype) is not None
        elif kind == "integers":
            fits = dtype.kind == "i"
        else:
            names = ("float16", "float32") if name == "features" else (kind,)
            fits = dtype.newbyteorder("=").name in names
        if fits:
            return dataset
    found = "" if dataset is None or dataset.shape is None else f", found {dataset.dtype} {dataset.shape}"
    wanted = " and 2 or 4 bytes each" if name == "features" else ""
    raise InputError(f"{path}: expected a dataset {name} of {kind} with {rank} dimension(s){wanted}{found}")


def _check_storage(path: Path, name: str, dataset: h5py.Dataset, file_bytes: int) -> None:
    """Check that all numbers of a dataset that is not virtual are in the file."""
    creation = dataset.id.get_create_plist()
    if creation.get_external_count():
        raise InputError(f"{path}: {name}: its numbers are in another file; fix: copy them into this one")
    claimed = math.prod(dataset.shape) * dataset.id.get_type().get_size()
    layout = creation.get_layout()
    if layout == h5py.h5d.CHUNKED:
        _check_chunks(path, name, dataset, file_bytes)
    elif layout == h5py.h5d.CONTIGUOUS and claimed:
        offset = dataset.id.get_offset()
        if offset is None or offset + claimed > file_bytes:
            raise InputError(f"{path}: {name}: claims {claimed} bytes, which are not in this file")


def _check_chunks(path: Path, name: str, dataset: h5py.Dataset, file_bytes: int) -> None:
    creation = dataset.id.get_create_plist()
    unknown = {creation.get_filter(index)[0] for index in range(creation.get_nfilters())} - set(_FILTERS)
    if unknown:
        raise InputError(
            f"{path}: {name}: compressed in an unknown way; fix: compress it with gzip, or not at all"
        )
    sides = dataset.chunks
    expected = math.prod(-(-length // side) for length, side in zip(dataset.shape, sides, strict=True))
    chunk_bytes = math.prod(sides) * dataset.id.get_type().get_size()
    stored: list[tuple[int, int]] = []
    if 0 < expected <= file_bytes:
        dataset.id.chunk_iter(lambda chunk: stored.append((chunk.byte_offset, chunk.size)))
    ratio = MAX_RATIO if creation.get_nfilters() else 1
    inside = all(offset + size <= file_bytes and size * ratio >= chunk_bytes for offset, size in stored)
    if len(stored) < expected or not inside:
        raise InputError(
            f"{path}: {name}: claims {expected} chunks of {chunk_bytes} bytes, which are not in this file"
        )


def check_mapping(path: Path, features: h5py.Dataset, sources: list[tuple[str, int]]) -> None:
    """Check that a virtual dataset reads exactly the features of its sources, one after the other.

    Args:
        path: of the store, for messages.
        features: the virtual dataset (M, D).
        sources: name and number of regions of each.

    Raises:
        InputError: it reads other files, datasets or rows.
    """
    creation, dim = features.id.get_create_plist(), features.shape[1]
    first, number = 0, 0
    expected = [source for source in sources if source[1]]
    fits = creation.get_virtual_count() == len(expected)
    for number, (name, regions) in enumerate(expected if fits else []):
        target, source = creation.get_virtual_vspace(number), creation.get_virtual_srcspace(number)
        fits = fits and (
            creation.get_virtual_filename(number) == name
            and creation.get_virtual_dsetname(number).lstrip("/") == "features"
            and target.get_select_npoints() == regions * dim
            and target.get_select_bounds() == ((first, 0), (first + regions - 1, dim - 1))
            and _is_whole(source, regions, dim)
        )
        first += regions
    if not fits or first != features.shape[0]:
        raise InputError(f"{path}: features: reads other rows or files than its attribute {SOURCES} lists")


def _is_whole(space: h5py.h5s.SpaceID, regions: int, dim: int) -> bool:
    """Whether a selection in a source takes all of its features."""
    if space.get_select_type() == h5py.h5s.SEL_ALL:
        return True
    bounds = ((0, 0), (regions - 1, dim - 1))
    return bool(space.get_select_npoints() == regions * dim and space.get_select_bounds() == bounds)
