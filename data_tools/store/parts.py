"""Part files: an extraction that is killed resumes from them, and they are joined into one store.

The list of images is divided by position into parts. A part is a small store in `FILE.parts/`, complete or
absent; it holds the provenance of the run that wrote it, so that a resumed run with anything changed is
refused. Each part records how many there are, so that they can be joined without the run.
"""

import os
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np

from data_tools.errors import InputError, one_line
from data_tools.files import check_space, flush_to_disk, replacing
from data_tools.store.probing import check_first
from data_tools.store.reading import FeatureStore
from data_tools.store.schema import Block, StoreSchema
from data_tools.store.writing import write_store

IMAGE_LIST = "image_list_sha256"  # in the provenance: which images were asked for
RESERVE = 16 << 20  # bytes left free on the disk beside a joined store


@dataclass(frozen=True)
class StoreContents:
    """What a store or part holds, without the columns of its regions: enough to join, count and report it.

    Attributes:
        schema: its columns and sizes.
        image_ids: N ids.
        counts: (N,) int64, regions of each image.
        failures: images that could not be stored, with `id`, `file` and `reason`.
    """

    schema: StoreSchema
    image_ids: list[str]
    counts: np.ndarray
    failures: tuple[dict[str, str], ...]

    @classmethod
    def of_store(cls, store: FeatureStore) -> "StoreContents":
        """Of an open store."""
        return cls(store.schema, store.image_ids, store.counts, store.failures)

    @classmethod
    def of_block(cls, block: Block) -> "StoreContents":
        """Of the store that holds this block."""
        return cls(StoreSchema.of([block]), block.image_ids, block.counts, block.failures)


@dataclass(frozen=True)
class Parts:
    """The parts of one store.

    Attributes:
        file: the store that they are joined into.
        provenance: how every part is made; text by name, written to each part and to the store.
        images: number of images in the list, including those that cannot be read.
        size: images per part; the last may have fewer.
        conditions: what else must not change while a store is made, as text by name; recorded in parts only.
    """

    file: Path
    provenance: dict[str, str]
    images: int
    size: int
    conditions: dict[str, str] = field(default_factory=dict)

    @classmethod
    def found(cls, file: Path) -> "Parts":
        """The parts of `file`, by what the first file in its folder of parts records.

        Raises:
            InputError: there is no part, or the first does not record to what list it belongs.
        """
        folder = cls(file, {}, 0, 1).folder
        paths = sorted(folder.glob("part-*.h5"))
        if not paths:
            raise InputError(f"{folder}: found no parts (part-*.h5) there")
        with FeatureStore(paths[0]) as store:
            attributes = dict(store.provenance)
        try:
            size = int(attributes.pop("images_per_part"))
            images = int(attributes.pop("images_in_list"))
            names = attributes.pop("part_conditions").split()
            conditions = {name: attributes.pop(name) for name in names}
        except (KeyError, ValueError):
            raise InputError(f"{paths[0]}: does not record to what list of images it belongs") from None
        if size < 1 or images < 1:
            raise InputError(f"{paths[0]}: expected positive numbers, found {size} of {images} images")
        return cls(file, attributes, images, size, conditions)

    @property
    def folder(self) -> Path:
        """The folder of the parts."""
        return self.file.with_name(self.file.name + ".parts")

    @property
    def count(self) -> int:
        """The number of parts; 0 for an empty list."""
        return -(-self.images // self.size)

    def span(self, part: int) -> range:
        """Positions in the list of the images of a part."""
        return range(part * self.size, min((part + 1) * self.size, self.images))

    def path(self, part: int) -> Path:
        """The file of a part."""
        return self.folder / f"part-{part:06d}.h5"

    @property
    def _attributes(self) -> dict[str, str]:
        return {
            **self.provenance,
            **self.conditions,
            "images_per_part": str(self.size),
            "images_in_list": str(self.images),
            "part_conditions": " ".join(self.conditions),
        }

    def present(self) -> dict[int, StoreContents]:
        """The contents of the parts that are written, by number; each is opened once.

        Raises:
            InputError: a part was made in another way; the message says what changed.
        """
        found = sorted(self.folder.glob("part-*.h5"))  # not every number: a file may claim any number of parts
        numbers = [int(path.stem[5:]) for path in found if path.stem[5:].isdecimal()]
        parts = [part for part in numbers if part < self.count and self.path(part).is_file()]
        check_first([self.path(part) for part in parts])
        contents = {}
        for part in parts:
            with FeatureStore(self.path(part)) as store:
                check_same_provenance(store.path, store.provenance, self._attributes)
                contents[part] = StoreContents.of_store(store)
        return contents

    def write(self, part: int, block: Block) -> StoreContents:
        """Write a part, whole or not at all; its contents."""
        contents = StoreContents.of_block(block)
        with replacing(self.path(part)) as temporary, disk_errors():
            write_store(temporary, [block], contents.schema, self._attributes)
        return contents

    def join(self, present: Mapping[int, StoreContents] | None = None) -> StoreContents:
        """Join all parts into the store, by rename, and remove them.

        Args:
            present: what `present` and `write` returned, by part; None to open the parts for it.

        Returns:
            The contents of the store.

        Raises:
            InputError: parts are missing, or the disk has no room for a copy of them.
        """
        present = self.present() if present is None else present
        self._check_complete(present)
        paths = [self.path(part) for part in range(self.count)]
        contents = joined_contents(paths, [present[part] for part in range(self.count)])
        host = socket.gethostname()
        for left in self.folder.glob(f"joined.{host}.*.tmp"):  # of joins that were killed here
            if not Path(f"/proc/{left.name.split('.')[-2]}").exists():
                left.unlink(missing_ok=True)
        check_disk_space(self.file, paths)
        with (
            replacing(self.file, temporary=self.folder / f"joined.{host}.{os.getpid()}.tmp") as temporary,
            disk_errors(),
        ):
            write_store(temporary, blocks_of(paths, contents.failures), contents.schema, self.provenance)
        self.discard()
        return contents

    def _check_complete(self, present: Mapping[int, StoreContents]) -> None:
        missing = self.count - len(present)
        if missing:
            absent = (self.path(part).name for part in range(self.count) if part not in present)
            others = f" and {missing - 5} others" if missing > 5 else ""
            raise InputError(
                f"{self.folder}: {missing} of {self.count} parts are missing: "
                f"{', '.join(islice(absent, 5))}{others}"
            )

    def discard(self) -> None:
        """Remove the parts."""
        if self.folder.is_dir():
            shutil.rmtree(self.folder)
            flush_to_disk(self.folder.parent)


@contextmanager
def disk_errors() -> Iterator[None]:
    """HDF5 reports a full disk as a `RuntimeError` when it closes a file: make it an `OSError`."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(one_line(error)) from error


def check_disk_space(file: Path, paths: Sequence[Path]) -> None:
    """Raise `InputError` unless the disk of `file` has room for a copy of the stores `paths`."""
    check_space(file, sum(path.stat().st_size for path in paths) + RESERVE)


def blocks_of(
    paths: Sequence[Path], failures: tuple[dict[str, str], ...], features: bool = True
) -> Iterator[Block]:
    """The images of these stores, one store after the other, some hundred at a time; `failures` come last."""
    for number, path in enumerate(paths, start=1):
        with FeatureStore(path) as store:  # one at a time: there may be more parts than file handles
            for block in store.blocks(features=features):
                yield replace(block, failures=())
            if number == len(paths):
                yield replace(store.block(range(0), features), failures=failures)


def joined_contents(paths: Sequence[Path], contents: Sequence[StoreContents]) -> StoreContents:
    """The contents of the store that holds all images of these (at least one), one store after the other.

    Args:
        paths: of the stores, for messages.
        contents: of each.

    Raises:
        InputError: they differ in their columns, their dimension or their type of features.
    """
    first = contents[0].schema
    for path, each in zip(paths, contents, strict=True):
        _check_same_schema(path, each.schema, paths[0], first)
    schema = replace(
        first,
        images=sum(each.schema.images for each in contents),
        regions=sum(each.schema.regions for each in contents),
        id_bytes=max(each.schema.id_bytes for each in contents),
    )
    return StoreContents(
        schema,
        [image_id for each in contents for image_id in each.image_ids],
        np.concatenate([each.counts for each in contents]),
        tuple(failure for each in contents for failure in each.failures),
    )


def _check_same_schema(path: Path, schema: StoreSchema, first_path: Path, first: StoreSchema) -> None:
    for what, found, expected in (
        ("dimension", schema.dim, first.dim),
        ("type of features", schema.feature_dtype, first.feature_dtype),
        ("columns", _columns(schema), _columns(first)),
    ):
        if found != expected:
            raise InputError(f"{path}: {what} {found}; {first_path} has {expected}")


def _columns(schema: StoreSchema) -> str:
    return " ".join((*schema.region_columns, *(["image_sizes"] if schema.has_image_sizes else []))) or "none"


def check_same_provenance(
    path: Path,
    found: dict[str, str],
    expected: dict[str, str],
    advice: str = "fix: give the same options to resume, or --overwrite to start again",
) -> None:
    """Raise `InputError` where the provenance of `path` is not the expected; the message says what differs."""
    changed = [name for name in sorted({*found, *expected}) if found.get(name) != expected.get(name)]
    if not changed:
        return
    details = []
    for name in changed:
        if name == IMAGE_LIST:  # two hashes say nothing
            details.append("the list of images changed")
            continue
        old, new = _differing_lines(found.get(name, "(none)"), expected.get(name, "(none)"))
        details.append(f"{name} was {old}, is {new}")
    raise InputError(f"{path}: made in another way: {'; '.join(details)}; {advice}")


def _differing_lines(old: str, new: str) -> tuple[str, str]:
    """The first line in which two texts differ, each cut to a readable length."""
    for mine, other in zip(old.splitlines(), new.splitlines(), strict=False):
        if mine != other:
            return mine.strip()[:80], other.strip()[:80]
    return f"{len(old.splitlines())} lines", f"{len(new.splitlines())} lines"
