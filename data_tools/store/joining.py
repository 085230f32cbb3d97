"""Joining stores: those that several machines made of one collection, or the parts that a run left."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_tools.errors import InputError, UsageError
from data_tools.files import replacing
from data_tools.store.parts import (
    Parts,
    blocks_of,
    check_disk_space,
    check_same_provenance,
    disk_errors,
    joined_shape,
)
from data_tools.store.reading import FeatureStore
from data_tools.store.report import write_report
from data_tools.store.writing import write_store, write_virtual_store

OF_THE_LIST = "image_list_sha256"  # the one thing in which stores of different images must differ
_ADVICE = "stores are joined only if they were made in the same way"


@dataclass(frozen=True)
class Joined:
    """What a join made of how many stores."""

    file: Path
    stores: int
    images: int
    regions: int
    failures: int
    bytes: int
    virtual: bool

    def __str__(self) -> str:
        missing = f"; {self.failures} images could not be extracted" if self.failures else ""
        kind = (
            f"virtual, its features stay in {self.stores} stores" if self.virtual else f"of {self.stores} stores"
        )
        size = f"{self.images} images, {self.regions} regions, {self.bytes / 1e6:.1f} MB"
        return f"{self.file}: {size}, {kind}{missing}"


def join_stores(out: Path, paths: Sequence[Path], virtual: bool = False) -> Joined:
    """Write one store of the images of these, in this order; the stores stay as they are.

    A virtual one copies everything but the features and says where they lie: by paths relative to its own
    folder for stores in it or below, by absolute ones for others.

    Raises:
        InputError: provenance, columns or dimensions differ, two stores hold one image, or the disk is full.
        UsageError: `out` is one of the stores.
    """
    if any(path.resolve() == out.resolve() for path in paths):
        raise UsageError(f"{out}: is one of the stores to join; give another name to the joined one")
    provenance = _common_provenance(paths)
    _check_no_shared_images(paths)
    shape = joined_shape(paths)
    if not virtual:
        check_disk_space(out, paths)
    with replacing(out) as temporary, disk_errors():
        if virtual:
            sources = [(_reference(out, path), _regions(path)) for path in paths]
            write_virtual_store(temporary, blocks_of(paths, features=False), shape, provenance, sources)
        else:
            write_store(temporary, blocks_of(paths), shape, provenance)
    return _joined(out, len(paths), virtual)


def join_parts(file: Path) -> Joined:
    """Join the parts in `FILE.parts/` into `file`, write its report and remove them.

    Raises:
        InputError: parts are missing, differ in how they were made, or the disk is full.
        UsageError: `file` is there already.
    """
    if file.exists():
        raise UsageError(f"{file}: is there already; to join several stores, name them after the joined one")
    parts = Parts.found(file)
    missing = parts.missing()
    if missing:
        numbers = ", ".join(parts.path(part).name for part in missing[:5])
        others = f" and {len(missing) - 5} others" if len(missing) > 5 else ""
        raise InputError(f"{parts.folder}: {len(missing)} of {parts.count} parts are missing: {numbers}{others}")
    count = parts.count
    _check_no_shared_images([parts.path(part) for part in range(count)])
    parts.join()
    with FeatureStore(file) as store:
        write_report(file, len(store.image_ids), store.failures)
    return _joined(file, count, virtual=False)


def _common_provenance(paths: Sequence[Path]) -> dict[str, str]:
    """What all stores say of how they were made; the list of images is named only if it is the same."""
    found = []
    for path in paths:
        with FeatureStore(path) as store:
            found.append(store.provenance)
        mine, first = ({k: v for k, v in texts.items() if k != OF_THE_LIST} for texts in (found[-1], found[0]))
        check_same_provenance(path, first, mine, f"{_ADVICE} (was: {paths[0]}; is: this one)")
    lists = {texts.get(OF_THE_LIST) for texts in found}
    return {name: text for name, text in found[0].items() if name != OF_THE_LIST or len(lists) == 1}


def _check_no_shared_images(paths: Sequence[Path]) -> None:
    holder: dict[str, Path] = {}
    for path in paths:
        with FeatureStore(path) as store:
            shared = [image_id for image_id in store.image_ids if image_id in holder]
            if shared:
                others = f" and {len(shared) - 1} others" if len(shared) > 1 else ""
                raise InputError(f"{path}: image {shared[0]}{others} is in {holder[shared[0]]} too")
            holder.update(dict.fromkeys(store.image_ids, path))


def _reference(out: Path, path: Path) -> str:
    """How the virtual store names a source, so that both can be moved together."""
    folder, source = out.parent.resolve(), path.resolve()
    return os.path.relpath(source, folder) if source.is_relative_to(folder) else str(source)


def _regions(path: Path) -> int:
    with FeatureStore(path) as store:
        return store.shape.regions


def _joined(file: Path, stores: int, virtual: bool) -> Joined:
    with FeatureStore(file) as store:
        shape, failures = store.shape, len(store.failures)
    return Joined(file, stores, shape.images, shape.regions, failures, file.stat().st_size, virtual)
