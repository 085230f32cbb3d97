"""Converting region features between the feature store and the formats of other projects.

| format | files | content besides features and ids |
| --- | --- | --- |
| store | one HDF5 file | everything |
| scan | `{split}_ims.npy` and `{split}_ids.txt` | nothing |
| butd | the TSV of bottom-up attention, float32 | boxes, image sizes |
| lxmert | LXMERT's TSV, float32 | boxes, image sizes, classes, attributes and their scores |
| oscar | Oscar's TSV and its index, float32 | boxes (rounded), image sizes |
| vinvl | the TSV of VinVL's detector and its index, float32 | boxes, image sizes, class scores |
| milvlg | a folder of `{image}.npz` | boxes, image sizes |
| datasets | a Parquet file for Hugging Face's `datasets`; it is written, not read | everything but failures |
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from data_tools.captions.splits import read_ids
from data_tools.console import Progress
from data_tools.errors import UsageError
from data_tools.files import replacing
from data_tools.formats.npz import NpzSource, write_npz
from data_tools.formats.scan import write_array
from data_tools.formats.source import (
    ArraySource,
    RegionSource,
    StoreSource,
    WithFeatureType,
    named_by_files,
    named_by_ids,
    schema_of,
    select_images,
)
from data_tools.formats.table import KIND, SUFFIX, write_table
from data_tools.formats.tsv import TsvSource, tsv_layout, write_tsv
from data_tools.formats.tsv_rows import BUTD, LXMERT
from data_tools.formats.vinvl import CONTENT, OSCAR, VINVL, write_vinvl
from data_tools.store.features import ARRAY_SUFFIX, ScanFeatures, ScanFolder, open_features
from data_tools.store.parts import disk_errors
from data_tools.store.reading import FeatureStore
from data_tools.store.schema import REGION_COLUMNS, Block
from data_tools.store.writing import write_store

_CONTENT = {  # of each format besides features and ids
    "store": {*REGION_COLUMNS, "image_sizes", "provenance", "failures"},
    "scan": set[str](),
    "butd": {*BUTD.columns, "image_sizes"},
    "lxmert": {*LXMERT.columns, "image_sizes"},
    "milvlg": {"boxes", "image_sizes"},
    KIND: {*REGION_COLUMNS, "image_sizes", "provenance"},
    **CONTENT,
}
_FLOAT32 = ("butd", "lxmert", OSCAR, VINVL)


@dataclass(frozen=True)
class Choices:
    """Options of a conversion.

    Attributes:
        dtype: of the written features, `float16` or `float32`; None keeps that of the source.
        ids: a file with the ids of the images to convert, in this order; None converts all.
        to_ids: an `id_mapping.json` by which file names are replaced by ids.
        to_file_names: an `id_mapping.json` by which ids are replaced by file names.
        overwrite: whether to replace existing files.
        skip_damaged: whether rows of a TSV that cannot be read are left out and listed in the notes.
    """

    dtype: str | None = None
    ids: Path | None = None
    to_ids: Path | None = None
    to_file_names: Path | None = None
    overwrite: bool = False
    skip_damaged: bool = False


@dataclass
class ConversionResult:
    """Files, counts and feature type of what was written, and one line per thing that the user should know.

    `lost` counts the damaged rows that were left out and whose image has no other row.
    """

    files: list[Path] = field(default_factory=list)
    images: int = 0
    lost: int = 0
    regions: int = 0
    dim: int = 0
    dtype: str = ""
    notes: list[str] = field(default_factory=list)


def convert(
    source_path: Path, target: Path, to: str | None = None, choices: Choices = Choices()
) -> ConversionResult:
    """Convert region features; images are read, converted and written one at a time.

    Args:
        source_path: a store, SCAN's `.npy` or a folder of them, a TSV, or a folder of `.npz` archives.
        target: the file or folder to write. For the format `scan` it may be a folder: each split whose
            `{split}_ids.txt` is in it is written as one array.
        to: the format: store, scan, butd, lxmert, oscar, vinvl, milvlg or datasets; None derives it from the
            name of `target`.
        choices: options.

    Raises:
        InputError: the source is malformed, lacks an image that `ids` names, or does not fit the format.
        UsageError: the format is not clear or needs data that the source lacks, or the target exists.
    """
    kind = to or _format_of(target)
    source: RegionSource = open_source(source_path, choices.skip_damaged)
    lost = source.lost if isinstance(source, TsvSource) else 0
    if choices.to_ids:
        source = named_by_ids(source, choices.to_ids)
    if choices.ids:
        source = select_images(source, list(dict.fromkeys(read_ids(choices.ids))))
    if choices.to_file_names:
        source = named_by_files(source, choices.to_file_names)
    dtype = np.dtype(choices.dtype) if choices.dtype else source.dtype
    if kind in _FLOAT32:
        if choices.dtype == "float16":
            raise UsageError(f"a {kind} TSV holds float32; fix: leave out --dtype float16")
        dtype = np.dtype("float32")
    notes = [*source.notes, *_losses(source, kind)]
    result = ConversionResult(lost=lost, dim=source.dim, dtype=dtype.name, notes=notes)
    targets = list(_targets(target, kind, source))
    for path, _ in targets:
        if (path.is_file() or (path.is_dir() and any(path.iterdir()))) and not choices.overwrite:
            raise UsageError(f"{path}: exists; fix: give another name, or --overwrite to replace it")
    for path, images in targets:
        with Progress("convert", len(images.image_ids), "images") as bar:
            _write(kind, path, WithFeatureType(images, dtype), bar.advance)
        result.files.append(path)
        result.images += len(images.image_ids)
        result.regions += int(images.counts.sum())
    return result


def open_source(path: Path, skip_damaged: bool = False) -> RegionSource:
    """Open a file or folder of any format; `InputError` if it is in none of them or damaged.

    `skip_damaged` leaves out damaged rows of a TSV; for another format it raises `UsageError`.
    """
    if skip_damaged and path.suffix.lower() != ".tsv":
        raise UsageError(f"{path}: only damaged rows of a TSV can be skipped")
    if path.is_dir() and any(path.glob("*.npz")):
        return NpzSource(path)
    if path.suffix.lower() == ".tsv":
        return TsvSource(path, skip_damaged)
    features = open_features(path)
    if isinstance(features, ScanFeatures | ScanFolder):
        return ArraySource(features)
    assert isinstance(features, FeatureStore)
    return StoreSource(features.path)


def _format_of(target: Path) -> str:
    suffix = target.suffix.lower()
    if suffix in (".h5", ".hdf5"):
        return "store"
    if suffix == ".npy":
        return "scan"
    if suffix == SUFFIX:
        return KIND
    kinds = (
        "butd, lxmert, oscar or vinvl"
        if suffix == ".tsv"
        else "milvlg or scan"
        if not suffix
        else "one of the formats"
    )
    raise UsageError(f"{target}: the name does not determine the format; fix: give --to {kinds}")


def _losses(source: RegionSource, kind: str) -> list[str]:
    """One line about the data of the source that the format cannot hold; empty if there is none."""
    had = [*source.region_columns, *(["image_sizes"] if source.has_image_sizes else [])]
    had += ["provenance"] if source.provenance else []
    had += ["failures"] if source.failures else []
    lost = [name for name in had if name not in _CONTENT[kind]]
    return [f"left out, because {kind} cannot hold it: {', '.join(lost)}"] if lost else []


def _targets(target: Path, kind: str, source: RegionSource) -> Iterator[tuple[Path, RegionSource]]:
    """Each file or folder to write, with its images."""
    if kind != "scan" or target.suffix == ".npy":
        yield target, source
        return
    lists = sorted(target.glob("*_ids.txt"))
    if not lists:
        raise UsageError(
            f"{target}: holds no {{split}}_ids.txt; fix: give the name of an array, for instance dev{ARRAY_SUFFIX}"
        )
    for path in lists:
        images = select_images(source, list(dict.fromkeys(read_ids(path))))
        yield target / f"{path.name.removesuffix('_ids.txt')}{ARRAY_SUFFIX}", images


def _write(kind: str, path: Path, source: RegionSource, advance: Callable[[], None]) -> None:
    if kind == "scan":
        write_array(path, source, advance)
    elif kind == "milvlg":
        write_npz(path, source, advance)
    elif kind in (OSCAR, VINVL):
        write_vinvl(path, source, kind, advance)
    else:
        with replacing(path) as temporary, disk_errors():
            if kind == "store":
                attributes = _provenance(source)
                write_store(temporary, _blocks(source, advance), schema_of(source), attributes)
            elif kind == KIND:
                write_table(temporary, source, advance)
            else:
                write_tsv(temporary, source, tsv_layout(kind), advance)


def _provenance(source: RegionSource) -> dict[str, str]:
    known = source.provenance or {"converted_from": source.path.name}
    return {**known, "feature_dtype": source.dtype.name}


def _blocks(source: RegionSource, advance: Callable[[], None]) -> Iterator[Block]:
    last = len(source.image_ids) - 1
    for row in range(last + 1):
        block = source.image(row)
        yield replace(block, failures=source.failures) if row == last else block
        advance()
