"""The complete check of a store before anything of it is used.

A store from outside is data, not a program: HDF5 can make a dataset out of other files, claim sizes that no file
has, or, where its bytes are damaged, crash the process or never end. So a file that this process did not write is
checked first by another process (`data_tools.store.checking`), and opened here only if it is whole.

Shapes: N images, M regions, D feature dimension.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from data_tools.errors import InputError, UnavailableError, one_line
from data_tools.store.schema import FORMAT, FORMAT_VERSION, REGION_COLUMNS, SOURCES

MAX_ATTRIBUTE = 16 << 20  # bytes
MAX_COMPRESSION = 1100  # of deflate: what a compressed dataset may hold for each byte in the file
SLACK = 1 << 16  # bytes that small compressed datasets may hold beyond that
_FLOATS, _INTEGERS = "f", "iu"


def open_hdf5(path: Path) -> h5py.File:
    """Open an HDF5 file for reading.

    Raises:
        UnavailableError: it is locked, may not be read, or too many files are open: the file may be whole.
        InputError: there is no such file, or it is damaged.
    """
    try:
        os.close(os.open(path, os.O_RDONLY))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise UnavailableError(f"{path}: cannot be read now: {one_line(error)}") from None
    if not path.is_file():
        raise InputError(f"{path}: expected a file")
    try:
        return h5py.File(path, "r", locking="best-effort")  # some network file systems do not support locks
    except Exception as error:
        reason = one_line(error)
        if "unable to lock" in reason:
            raise UnavailableError(f"{path}: is locked: another program is writing it; fix: wait for it") from None
        raise InputError(
            f"{path}: not a readable HDF5 file (damaged, truncated, or another format): {reason}"
        ) from None


def check_structure(path: Path) -> None:
    """Check that a file is a whole store of the format, and a virtual one's sources too.

    Raises:
        InputError: it is not; the message names the dataset or attribute, and what was expected.
        UnavailableError: it cannot be read now.
    """
    with open_hdf5(path) as file:
        try:
            sources = _check_store(path, file, virtual=True)
        except InputError:
            raise
        except Exception as error:  # HDF5 raises many types on damaged files
            raise InputError(f"{path}: damaged: {one_line(error)}") from None
    for source in sources:
        if source.resolve() == path.resolve():
            raise InputError(f"{path}: attribute {SOURCES}: names the store itself")
        if not source.is_file():
            raise InputError(f"{path}: {source}, which holds its features, does not exist")
        with open_hdf5(source) as file:
            try:
                _check_store(source, file, virtual=False)
            except InputError:
                raise
            except Exception as error:
                raise InputError(f"{source}: damaged: {one_line(error)}") from None


def _check_store(path: Path, file: h5py.File, virtual: bool) -> list[Path]:
    """Check one file; returns the sources of a virtual store, which are not looked at."""
    names = _check_attributes(path, file)
    if names and not virtual:
        raise InputError(f"{path}: is virtual; a virtual store refers to plain stores only")
    images, regions = _check_index(path, file)
    for name, (_, trailing) in REGION_COLUMNS.items():
        if name in file:
            kinds = _FLOATS if name == "boxes" or name.endswith("scores") else _INTEGERS
            _plain(path, file, name, kinds, (regions, *trailing))
    if "image_sizes" in file:
        sizes = _plain(path, file, "image_sizes", _INTEGERS, (images, 2))[()]
        if (sizes < 1).any() or (sizes > np.iinfo(np.int32).max).any():
            raise InputError(f"{path}: image_sizes: expected heights and widths from 1 on")
    if "failures" in file:
        _check_failures(path, _plain(path, file, "failures", None, None))
    return _check_features(path, file, regions, names)


def _check_attributes(path: Path, file: h5py.File) -> list[str]:
    """Check the attributes; returns the names of a virtual store's sources."""
    found = {}
    for name in file.attrs:
        kind = file.attrs.get_id(name)
        if kind.get_storage_size() > MAX_ATTRIBUTE or kind.shape != ():
            raise InputError(f"{path}: attribute {name!r}: expected one text or number")
        if h5py.check_string_dtype(kind.dtype) is None and kind.dtype.kind not in "iufb":
            raise InputError(f"{path}: attribute {name!r}: expected one text or number")
        found[name] = file.attrs[name]
    if not isinstance(found.get("format"), str) or found["format"] != FORMAT:
        raise InputError(
            f"{path}: not a feature store: its attribute format is {found.get('format')!r}, expected {FORMAT!r}"
        )
    if found.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{path}: format version {found.get('format_version')}; this program reads version {FORMAT_VERSION}"
        )
    try:
        names = json.loads(str(found.get(SOURCES, "[]")))
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise InputError(f"{path}: its attribute {SOURCES} must be a JSON list of file names")
    return names


def _check_index(path: Path, file: h5py.File) -> tuple[int, int]:
    """Check ids and offsets; returns N and M."""
    ids = _plain(path, file, "image_ids", None, None)
    images = len(ids)
    try:
        texts = [value.decode() if isinstance(value, bytes) else value for value in ids[()]]
    except UnicodeDecodeError:
        raise InputError(f"{path}: image_ids: not UTF-8 text") from None
    if len(set(texts)) != images:
        raise InputError(f"{path}: image_ids: an id is repeated")
    regions = _dataset(path, file, "features").shape[:1]
    offsets = _plain(path, file, "offsets", _INTEGERS, (images + 1,))[()]
    if offsets[0] != 0 or (offsets[1:] < offsets[:-1]).any() or (offsets[-1:] != regions).any():
        raise InputError(
            f"{path}: offsets: expected {images + 1} numbers that rise from 0 to {regions[0] if regions else '?'} "
            f"for {images} images"
        )
    return images, int(offsets[-1])


def _check_features(path: Path, file: h5py.File, regions: int, names: Sequence[str]) -> list[Path]:
    """Check the features; returns the sources of a virtual store."""
    features = _dataset(path, file, "features")
    if features.ndim != 2 or features.shape[0] != regions:
        raise InputError(f"{path}: expected a dataset features of floats with 2 dimension(s)")
    _check_type(path, features, "features", _FLOATS)
    if features.dtype.itemsize not in (2, 4):
        raise InputError(f"{path}: features: expected float16 or float32, found {features.dtype}")
    if features.is_virtual != bool(names):
        raise InputError(f"{path}: its attribute {SOURCES} does not list the files that hold its features")
    if not features.is_virtual:
        _check_place(path, file, "features")
        return []
    return _check_mapping(path, features, names)


def _check_mapping(path: Path, features: h5py.Dataset, names: Sequence[str]) -> list[Path]:
    """A virtual store's features are those of its sources, one after the other, and of nothing else."""
    first, mapped, dim = 0, [], features.shape[1]
    for part in features.virtual_sources():
        place, source = part.vspace, part.src_space
        (row, column), (last_row, last_column) = place.get_select_bounds()
        rows = last_row - row + 1
        whole = row == first and column == 0 and last_column == dim - 1
        whole &= place.get_select_npoints() == rows * dim and part.dset_name.lstrip("/") == "features"
        if source.get_select_type() != h5py.h5s.SEL_ALL:  # the writer names the whole dataset in one of two ways
            whole &= source.get_select_bounds() == ((0, 0), (rows - 1, dim - 1))
            whole &= source.get_select_npoints() == rows * dim
        if not whole:
            raise InputError(f"{path}: features: expected the features of its sources, one after the other")
        mapped.append(part.file_name)
        first += rows
    if first != features.shape[0] or [name for name in names if name in mapped] != mapped:
        raise InputError(f"{path}: its attribute {SOURCES} does not list the files that hold its features")
    return [path.parent / name for name in names]


def _check_failures(path: Path, failures: h5py.Dataset) -> None:
    for line in failures[()]:
        try:
            failure = json.loads(line)
        except (ValueError, RecursionError):
            failure = None
        if not isinstance(failure, dict) or not all(isinstance(value, str) for value in failure.values()):
            raise InputError(f"{path}: failures: expected JSON objects of texts")


def _plain(
    path: Path, file: h5py.File, name: str, kinds: str | None, shape: tuple[int, ...] | None
) -> h5py.Dataset:
    """A dataset that lies in the file itself, of numbers of these kinds, or of texts in one dimension."""
    dataset = _dataset(path, file, name)
    _check_type(path, dataset, name, kinds)
    if (dataset.ndim != 1) if shape is None else (dataset.shape != shape):
        raise InputError(f"{path}: {name}: expected the shape {shape or '(images,)'}, found {dataset.shape}")
    _check_place(path, file, name)
    return dataset


def _dataset(path: Path, file: h5py.File, name: str) -> h5py.Dataset:
    link = file.get(name, getlink=True) if name in file else None
    if not isinstance(link, h5py.HardLink) or file.get(name, getclass=True) is not h5py.Dataset:
        raise InputError(f"{path}: expected a dataset {name} in the file itself")
    dataset = file[name]
    if dataset.shape is None:
        raise InputError(f"{path}: {name}: is empty")
    return dataset


def _check_type(path: Path, dataset: h5py.Dataset, name: str, kinds: str | None) -> None:
    is_text = h5py.check_string_dtype(dataset.dtype) is not None
    if is_text if kinds is not None else not is_text:
        raise InputError(f"{path}: {name}: expected {'numbers' if kinds else 'text'}, found {dataset.dtype}")
    if kinds is not None and (dataset.dtype.kind not in kinds or dataset.dtype.itemsize > 8):
        expected = "floats" if kinds == _FLOATS else "integers"
        raise InputError(f"{path}: {name}: expected {expected}, found {dataset.dtype}")


def _check_place(path: Path, file: h5py.File, name: str) -> None:
    """The bytes of a dataset lie in the file, and are as many as it claims."""
    dataset = file[name]
    creation, stored = dataset.id.get_create_plist(), dataset.id.get_storage_size()
    layout = creation.get_layout()
    if creation.get_external_count() or layout not in (h5py.h5d.CONTIGUOUS, h5py.h5d.CHUNKED, h5py.h5d.COMPACT):
        raise InputError(f"{path}: {name}: expected its numbers in the file itself; they are taken from elsewhere")
    claimed, offset = dataset.size * dataset.id.get_type().get_size(), dataset.id.get_offset() or 0
    size = path.stat().st_size
    allowed = MAX_COMPRESSION * stored + SLACK if layout == h5py.h5d.CHUNKED else stored
    if stored > size or offset + stored > size or claimed > allowed:
        raise InputError(f"{path}: {name}: claims {claimed} bytes, which the file does not hold")


def describe(error: Exception) -> dict[str, Any]:
    """An error as plain data, for another process."""
    return {"message": str(error), "unavailable": isinstance(error, UnavailableError)}
