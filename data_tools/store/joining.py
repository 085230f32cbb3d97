"""Joining stores that several machines made of one collection, or the parts that a run left."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data_tools.errors import InputError, UsageError
from data_tools.files import replacing
from data_tools.store.parts import (
    IMAGE_LIST,
    Parts,
    StoreContents,
    blocks_of,
    check_disk_space,
    check_same_provenance,
    disk_errors,
    joined_contents,
)
from data_tools.store.probing import check_first
from data_tools.store.reading import FeatureStore
from data_tools.store.report import write_report
from data_tools.store.writing import write_store, write_virtual_store

_ADVICE = "only stores that were made in the same way can be joined"


@dataclass(frozen=True)
class Joined:
    """The store that a join wrote, and from how many stores or parts."""

    file: Path
    stores: int
    images: int
    regions: int
    failures: int
    bytes: int
    virtual: bool

    def __str__(self) -> str:
        failed = f"; {self.failures} images could not be extracted" if self.failures else ""
        kind = (
            f"virtual, with the features of {self.stores} stores"
            if self.virtual
            else f"joined from {self.stores} stores"
        )
        size = f"{self.images} images, {self.regions} regions, {self.bytes / 1e6:.1f} MB"
        return f"{self.file}: {size}, {kind}{failed}"


def join_stores(out: Path, paths: Sequence[Path], virtual: bool = False) -> Joined:
    """Write one store with the images of these stores, in this order; the stores are not changed.

    A virtual store copies everything but the features and refers to them: by paths relative to its folder for
    stores in that folder or below, by absolute paths for others.

    Raises:
        InputError: provenance, columns or dimensions differ, two stores hold one image, or the disk is full.
        UsageError: `out` is one of the stores.
    """
    if any(path.resolve() == out.resolve() for path in paths):
        raise UsageError(f"{out}: is one of the stores to join; fix: give the joined store another name")
    provenance, each = _read_all(paths, virtual)
    _check_no_shared_images(paths, each)
    contents = replace(joined_contents(paths, each), failures=_still_failed(each))
    if not virtual:
        check_disk_space(out, paths)
    with replacing(out) as temporary, disk_errors():
        if virtual:
            sources = [(_reference(out, path), own.schema.regions) for path, own in zip(paths, each, strict=True)]
            blocks = blocks_of(paths, contents.failures, features=False)
            write_virtual_store(temporary, blocks, contents.schema, provenance, sources)
        else:
            write_store(temporary, blocks_of(paths, contents.failures), contents.schema, provenance)
    return _joined(out, contents, len(paths), virtual)


def join_parts(file: Path) -> Joined:
    """Join the parts in `FILE.parts/` into `file`, write its report and remove them.

    Raises:
        InputError: parts are missing, were made in different ways, hold one image twice, or the disk is full.
        UsageError: `file` exists.
    """
    if file.exists():
        raise UsageError(
            f"{file}: exists; fix: to join several stores, name them: data-tools join A.h5 B.h5 --out {file.name}"
        )
    parts = Parts.found(file)
    present = parts.present()
    _check_no_shared_images([parts.path(part) for part in present], list(present.values()))
    contents = parts.join(present)
    write_report(file, contents.schema.images, contents.failures)
    return _joined(file, contents, parts.count, virtual=False)


def _read_all(paths: Sequence[Path], virtual: bool) -> tuple[dict[str, str], list[StoreContents]]:
    """The common provenance of all stores, and the contents of each; every store is opened once.

    The list of images, in which stores of different images differ, is part of it only if it is the same for all.
    """
    check_first(paths)
    provenances, contents = [], []
    for path in paths:
        with FeatureStore(path) as store:
            if virtual and store.sources:
                raise UsageError(f"{path}: is virtual itself; fix: name the stores that it was joined from")
            provenances.append(store.provenance)
            contents.append(StoreContents.of_store(store))
        own, first = (
            {name: text for name, text in texts.items() if name != IMAGE_LIST}
            for texts in (provenances[-1], provenances[0])
        )
        check_same_provenance(path, first, own, f"{_ADVICE} (was: {paths[0]}; is: this one)")
    lists = {texts.get(IMAGE_LIST) for texts in provenances}
    common = {name: text for name, text in provenances[0].items() if name != IMAGE_LIST or len(lists) == 1}
    return common, contents


def _still_failed(contents: Sequence[StoreContents]) -> tuple[dict[str, str], ...]:
    """The failures of the first store in which an image failed, unless another store holds the image."""
    holders = [set(each.image_ids) for each in contents]
    failures: list[dict[str, str]] = []
    for number, each in enumerate(contents):
        settled = {failure["id"] for failure in failures}
        settled.update(*(held for other, held in enumerate(holders) if other != number))
        failures += [failure for failure in each.failures if failure["id"] not in settled]
    return tuple(failures)


def _check_no_shared_images(paths: Sequence[Path], contents: Sequence[StoreContents]) -> None:
    holder: dict[str, Path] = {}
    for path, own in zip(paths, contents, strict=True):
        shared = [image_id for image_id in own.image_ids if image_id in holder]
        if shared:
            others = f" and {len(shared) - 1} others" if len(shared) > 1 else ""
            raise InputError(f"{path}: image {shared[0]}{others} is also in {holder[shared[0]]}")
        holder.update(dict.fromkeys(own.image_ids, path))


def _reference(out: Path, path: Path) -> str:
    """The path by which the virtual store refers to a source, so that both can be moved together."""
    folder, source = out.parent.resolve(), path.resolve()
    return os.path.relpath(source, folder) if source.is_relative_to(folder) else str(source)


def _joined(file: Path, contents: StoreContents, stores: int, virtual: bool) -> Joined:
    schema, failures = contents.schema, len(contents.failures)
    return Joined(file, stores, schema.images, schema.regions, failures, file.stat().st_size, virtual)
