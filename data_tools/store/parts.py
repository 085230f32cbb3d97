"""Part files: how a long extraction survives a kill and is joined into one store.

The list of images is cut by position into parts. A part is a small store in `FILE.parts/`, complete or
absent; it carries the provenance of the run that wrote it, so that a resumed run with anything changed is
refused. The parts say by themselves how many there are, so that they can be joined without the run.
"""

import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from data_tools.errors import InputError
from data_tools.files import flush_to_disk, replacing
from data_tools.store.reading import FeatureStore
from data_tools.store.schema import Block, StoreSchema
from data_tools.store.writing import write_store

RESERVE = 16 << 20  # bytes left free on the disk beside a joined store


@dataclass(frozen=True)
class Parts:
    """The parts of one store.

    Attributes:
        file: the store that they are joined into.
        provenance: how every part is made; text by name, written to each part and to the store.
        images: how many images the list has, those that cannot be read included.
        size: images of each part but the last.
        conditions: what else must not change while a store is made, in text by name; kept by parts only.
    """

    file: Path
    provenance: dict[str, str]
    images: int
    size: int
    conditions: dict[str, str] = field(default_factory=dict)

    @classmethod
    def found(cls, file: Path) -> "Parts":
        """The parts of `file` as the files in its folder of parts describe them.

        Raises:
            InputError: there is no part, or it does not say to what list it belongs.
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
            raise InputError(f"{paths[0]}: does not say to what list of images it belongs") from None
        if size < 1 or images < 1:
            raise InputError(f"{paths[0]}: expected positive numbers, found {size} of {images} images")
        return cls(file, attributes, images, size, conditions)

    @property
    def folder(self) -> Path:
        """Where the parts lie."""
        return self.file.with_name(self.file.name + ".parts")

    @property
    def count(self) -> int:
        """How many parts there are; an empty list has none."""
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

    def missing(self) -> list[int]:
        """The parts that are still to be written.

        Raises:
            InputError: a part that is there was made otherwise; the message says what changed.
        """
        absent = []
        for part in range(self.count):
            if not self.path(part).is_file():
                absent.append(part)
                continue
            with FeatureStore(self.path(part)) as store:
                check_same_provenance(store.path, store.provenance, self._attributes)
        return absent

    def write(self, part: int, block: Block) -> None:
        """Write a part, whole or not at all."""
        with replacing(self.path(part)) as temporary, disk_errors():
            write_store(temporary, [block], StoreSchema.of([block]), self._attributes)

    def join(self) -> None:
        """Join all parts into the store, by rename, and remove them.

        Raises:
            InputError: a part is missing, or the disk has no room for a copy of the parts.
        """
        paths = [self.path(part) for part in range(self.count)]
        host = socket.gethostname()
        for left in self.folder.glob(f"joined.{host}.*.tmp"):  # of joins that were killed here
            if not Path(f"/proc/{left.name.split('.')[-2]}").exists():
                left.unlink(missing_ok=True)
        check_disk_space(self.file, paths)
        with (
            replacing(self.file, temporary=self.folder / f"joined.{host}.{os.getpid()}.tmp") as temporary,
            disk_errors(),
        ):
            write_store(temporary, blocks_of(paths), joined_shape(paths), self.provenance)
        self.discard()

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
        raise OSError(" ".join(str(error).split())) from error


def check_disk_space(file: Path, paths: Sequence[Path]) -> None:
    """Raise `InputError` unless the disk of `file` has room for a copy of the stores `paths`."""
    needed = sum(path.stat().st_size for path in paths)
    folder = next(parent for parent in file.resolve().parents if parent.is_dir())
    free = shutil.disk_usage(folder).free
    if free < needed + RESERVE:
        raise InputError(
            f"{file}: joining its parts takes {needed / 1e9:.2f} GB and the disk has "
            f"{free / 1e9:.2f} GB left; make room and run the same command again"
        )


def blocks_of(paths: Sequence[Path], features: bool = True) -> Iterator[Block]:
    """The images of these stores, one store after the other, a few hundred at a time."""
    for path in paths:
        with FeatureStore(path) as store:  # one at a time: there may be more parts than file handles
            yield from store.blocks(features=features)


def joined_shape(paths: Sequence[Path]) -> StoreSchema:
    """The shape of the store that holds all images of these.

    Raises:
        InputError: they differ in their columns, their dimension or their type of features.
    """
    shapes: list[StoreSchema] = []
    for path in paths:
        with FeatureStore(path) as store:
            shapes.append(store.shape)
        _check_same_schema(path, shapes[-1], paths[0], shapes[0])
    return replace(
        shapes[0],
        images=sum(shape.images for shape in shapes),
        regions=sum(shape.regions for shape in shapes),
        id_bytes=max(shape.id_bytes for shape in shapes),
    )


def _check_same_schema(path: Path, shape: StoreSchema, first_path: Path, first: StoreSchema) -> None:
    for what, mine, other in (
        ("dimension", shape.dim, first.dim),
        ("type of features", shape.feature_dtype, first.feature_dtype),
        ("columns", _columns(shape), _columns(first)),
    ):
        if mine != other:
            raise InputError(f"{path}: its {what}: {mine}; {first_path} has {other}")


def _columns(shape: StoreSchema) -> str:
    return " ".join((*shape.region_columns, *(["image_sizes"] if shape.has_image_sizes else []))) or "none"


def check_same_provenance(
    path: Path,
    found: dict[str, str],
    expected: dict[str, str],
    advice: str = "give the same options to resume, or --overwrite to begin anew",
) -> None:
    """Raise `InputError` that says in what the provenance of `path` differs from that of the present run."""
    changed = [name for name in sorted({*found, *expected}) if found.get(name) != expected.get(name)]
    if not changed:
        return
    details = []
    for name in changed:
        old, new = _differing_lines(found.get(name, "(none)"), expected.get(name, "(none)"))
        details.append(f"{name} was {old}, is {new}")
    raise InputError(f"{path}: made by another run: {'; '.join(details)}; {advice}")


def _differing_lines(old: str, new: str) -> tuple[str, str]:
    """The first line in which two texts differ, each cut to a readable length."""
    for mine, other in zip(old.splitlines(), new.splitlines(), strict=False):
        if mine != other:
            return mine.strip()[:80], other.strip()[:80]
    return f"{len(old.splitlines())} lines", f"{len(new.splitlines())} lines"
