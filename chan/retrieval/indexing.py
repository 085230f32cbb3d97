"""Making and changing an index: new images, removed ones, compaction.

A writer takes the index's lock, writes new files, and replaces the manifest last: killed at any moment it leaves
the index as it was before or as it is after. Readers need no lock.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from chan.retrieval.image_files import find_images
from chan.retrieval.index import ImageIndex
from chan.retrieval.manifest import MANIFEST, MODEL, Manifest, Segment, read_manifest
from chan.retrieval.region_lists import build_lists, pays
from chan.retrieval.retriever import BATCH, Retriever
from chan.retrieval.segments import OpenSegment, write_segment
from chan.runs.folder import copy_model, load_run_config, weights_sha256
from chan.runs.hub import fetched_features
from chan.runs.provenance import check_same_features
from data_tools.captions.splits import read_ids
from data_tools.console import Progress
from data_tools.errors import InputError, UsageError, one_line
from data_tools.store.features import RegionFeatures, open_features
from data_tools.store.reading import FeatureStore
from data_tools.store.schema import REGION_COLUMNS, Block, StoreSchema

LOCK = ".lock"
DTYPE = np.dtype("<f2")  # of the embeddings: half of the bytes to read; cosines change by some 1e-4


@dataclass(frozen=True)
class Indexed:
    """What an index holds after a writer, and how many images this one added and removed."""

    folder: Path
    images: int
    regions: int
    added: int = 0
    removed: int = 0

    def __str__(self) -> str:
        changes = [
            f"{count} {what}" for count, what in ((self.added, "added"), (self.removed, "removed")) if count
        ]
        return f"{self.folder}: {self.images} images, {self.regions} regions" + (
            f" ({', '.join(changes)})" if changes else ""
        )


@dataclass(frozen=True)
class Collection:
    """Images to index.

    Attributes:
        features: their region features.
        source: where the features came from, for messages.
        folder: the folder of the image files; None if it is not known.
        files: the file of each image in that folder, by id.
        ids: the images to index, in order; None for all of `features`.
    """

    features: RegionFeatures
    source: Path
    folder: Path | None = None
    files: Mapping[str, str] | None = None
    ids: Sequence[str] | None = None

    def rows(self) -> np.ndarray:
        """(n,) int64: the rows of the images in the features; `InputError` names one without regions."""
        rows = np.arange(len(self.features)) if self.ids is None else self.features.rows(self.ids)
        empty = rows[self.features.counts[rows] == 0]
        if len(empty):
            raise InputError(f"{self.source}: image {self.features.image_ids[empty[0]]}: has no regions")
        return rows


def open_collection(
    data: Path, features: Path | None = None, images: Path | None = None, ids: Path | None = None
) -> Collection:
    """The images of a data folder, which needs no captions.

    Args:
        data: the folder; features are looked for in its precomp folder or itself.
        features: a features file or a folder with one, instead.
        images: the folder of the image files; None looks for it in `data`.
        ids: a text file of the ids to index, one per line; None for all.

    Raises:
        InputError: there are no features, or a file is malformed.
        UsageError: it is not clear which features are meant.
    """
    if not data.is_dir():
        raise InputError(f"{data}: no such folder")
    if images is not None and not images.is_dir():
        raise InputError(f"{images}: no such folder of images")
    source = fetched_features(features) or (data / "precomp" if (data / "precomp").is_dir() else data)
    folder, files = find_images(data, images)
    return Collection(open_features(source), source, folder, files, None if ids is None else read_ids(ids))


def create_index(folder: Path, run: Path, images: Collection, device: str = "auto") -> Indexed:
    """Make an index with the model of a run.

    Raises:
        UsageError: the folder holds an index.
        InputError: a file cannot be read or written, or the features do not fit the run.
    """
    if (folder / MANIFEST).exists():
        raise UsageError(f"{folder}: holds an index; fix: add to it with --add, or give another --out")
    with _writing(folder):
        _remove_strays(folder, ())
        shutil.rmtree(folder / MODEL, ignore_errors=True)  # of a writer that was killed
        copy_model(run, folder / MODEL)
        place = None if images.folder is None else _relative(images.folder, folder)
        dim = load_run_config(folder / MODEL).model.dim
        manifest = Manifest(weights_sha256(folder / MODEL), dim, dict(images.features.provenance), place)
        return _append(folder, manifest, images, device)


def add_to_index(folder: Path, images: Collection, device: str = "auto") -> Indexed:
    """Add the images that an index does not hold yet.

    Raises:
        InputError: there is no index, or the features were made in another way than those in it.
    """
    with _writing(folder):
        manifest = read_manifest(folder)
        check_same_features(manifest.features, f"the index {folder}", images.features.provenance, images.source)
        _remove_strays(folder, manifest.segments)
        return _append(folder, manifest, images, device)


def remove_from_index(folder: Path, image_ids: Sequence[str]) -> Indexed:
    """Mark images as removed: searches do not find them any more, and compaction drops them.

    Raises:
        InputError: the index does not hold one of them; then none is removed.
    """
    with _writing(folder):
        index, gone = ImageIndex(folder), set(image_ids)
        for image_id in image_ids:
            index.position(image_id)
        segments = []
        for opened in index.segments:
            removed = [i for i, alive in zip(opened.image_ids, opened.alive, strict=True) if alive and i in gone]
            segments.append(replace(opened.segment, removed=(*opened.segment.removed, *removed)))
        replace(index.manifest, segments=tuple(segments)).save(folder)
        return _state(folder, removed=len(gone))


def compact_index(folder: Path) -> Indexed:
    """Rewrite an index as one segment without the removed images."""
    with _writing(folder):
        index = ImageIndex(folder)
        before = sum(segment.images for segment in index.manifest.segments)
        sources = [(opened.store, np.flatnonzero(opened.alive)) for opened in index.segments]
        files = [opened.files[row] for opened in index.segments for row in np.flatnonzero(opened.alive)]
        manifest = replace(index.manifest, segments=())
        _write(folder, manifest, sources, files)
        return _state(folder, removed=before - len(index))


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Hold the lock of an index's writers, and remove at the end what its manifest does not name."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("w")
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {one_line(error)}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"{folder}: another process is changing this index; fix: wait for it") from None
        yield
        _remove_strays(folder, read_manifest(folder).segments)


def _remove_strays(folder: Path, segments: Sequence[Segment]) -> None:
    """Remove segment files that no manifest names, and unfinished files of any kind."""
    named = {f"{segment.name}{ending}" for segment in segments for ending in (".h5", ".json")}
    named |= {f"{segment.name}.faiss" for segment in segments if segment.lists}
    for path in (*folder.glob("segment-*"), *folder.glob(".*.tmp")):
        if path.name not in named:
            path.unlink()


def _append(folder: Path, manifest: Manifest, images: Collection, device: str) -> Indexed:
    """Encode the images that the index does not hold, and write them as a segment."""
    retriever = Retriever.from_pretrained(folder / MODEL, device)
    if images.features.dim != retriever.dim:
        raise InputError(
            f"{images.source}: features of {images.features.dim} numbers per region; "
            f"the model expects {retriever.dim}"
        )
    held = ImageIndex(folder).positions if manifest.segments else {}
    names, files = images.features.image_ids, images.files or {}
    rows = np.array([row for row in images.rows().tolist() if names[row] not in held], dtype=np.int64)
    if len(rows) or not manifest.segments:
        listed = [files.get(names[row], "") for row in rows.tolist()]
        _write(folder, manifest, [(images.features, rows)], listed, retriever)
    return _state(folder, added=len(rows))


def _write(
    folder: Path,
    manifest: Manifest,
    sources: Sequence[tuple[RegionFeatures, np.ndarray]],
    files: Sequence[str],
    retriever: Retriever | None = None,
) -> None:
    """Write the images at some rows of some features as the next segment, and the manifest with it.

    `retriever` encodes the features; None takes them as the embeddings.
    """
    counts = np.concatenate([features.counts[rows] for features, rows in sources])
    columns = [_columns(features) for features, _ in sources]
    if retriever is not None and retriever.model.has_one_vector:  # what the columns say of regions ends here
        counts, columns = np.ones_like(counts), [(set(), sizes) for _, sizes in columns]
    names = [image_id for features, rows in sources for image_id in _ids(features, rows)]
    schema = StoreSchema(
        images=len(counts),
        regions=int(counts.sum()),
        dim=manifest.dim,
        feature_dtype=DTYPE.str,
        region_columns=tuple(name for name in REGION_COLUMNS if all(name in own for own, _ in columns)),
        has_image_sizes=all(sizes for _, sizes in columns),
        id_bytes=max((len(name.encode()) for name in names), default=1),
    )
    with Progress("index", len(counts), "images") as progress:
        blocks = _blocks(sources, schema, retriever, progress.advance)
        attributes = {"embeddings_of": manifest.weights_sha256}
        write_segment(folder, manifest.next_name(), blocks, schema, files, attributes)
    segment = Segment(manifest.next_name(), schema.images, schema.regions)
    lists = pays(schema.regions)
    if lists:
        build_lists(folder, OpenSegment(folder, segment, manifest.dim))
    manifest.with_segment(schema.images, schema.regions, lists).save(folder)


def _ids(features: RegionFeatures, rows: np.ndarray) -> list[str]:
    return [features.image_ids[row] for row in rows.tolist()]


def _columns(features: RegionFeatures) -> tuple[set[str], bool]:
    """Which columns features have beside themselves, and whether they have image sizes."""
    if not isinstance(features, FeatureStore):
        return set(), False
    return set(features.schema.region_columns), features.schema.has_image_sizes


def _blocks(
    sources: Sequence[tuple[RegionFeatures, np.ndarray]],
    schema: StoreSchema,
    retriever: Retriever | None,
    advance: Callable[[int], None],
) -> Iterator[Block]:
    """The images in blocks of `BATCH`, their features encoded."""
    for features, rows in sources:
        stored = features if isinstance(features, FeatureStore) else None
        image_sizes = stored.image_sizes if stored and schema.has_image_sizes else None
        for first in range(0, len(rows), BATCH):
            some = rows[first : first + BATCH]
            found, counts = features.gather(some), features.counts[some]
            if retriever is not None:
                encoded = retriever.encode_regions(found, counts)
                found, counts = encoded.rows.numpy(), encoded.lengths.numpy()
            regions = {"features": _halved(found, features, some)}
            if stored is not None:
                regions |= {name: stored.gather_column(name, some) for name in schema.region_columns}
            sizes = None if image_sizes is None else image_sizes[some]
            yield Block(_ids(features, some), counts, regions, sizes)
            advance(len(some))


def _halved(embeddings: np.ndarray, features: RegionFeatures, rows: np.ndarray) -> np.ndarray:
    halved = embeddings.astype(DTYPE)
    if not np.isfinite(halved).all():
        raise InputError(
            f"images {features.image_ids[rows[0]]} to {features.image_ids[rows[-1]]}: the model's embeddings of "
            "their features are not finite in half precision; fix: check the features with data-tools verify"
        )
    return halved


def _state(folder: Path, added: int = 0, removed: int = 0) -> Indexed:
    index = ImageIndex(folder)
    return Indexed(folder, len(index), index.region_count, added, removed)


def _relative(images: Path, folder: Path) -> str:
    """The images folder as the manifest states it: relative where index and images lie in one folder's tree."""
    resolved, own = images.resolve(), folder.resolve()
    return os.path.relpath(resolved, own) if resolved.is_relative_to(own.parent) else str(resolved)
