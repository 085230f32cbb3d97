"""One segment of an index: the embeddings of some images, memory-mapped.

Shapes: N images and M regions of the segment, D joint dimension, K regions of one image.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np
import torch

from chan.packing import Packed
from chan.retrieval.manifest import Segment
from data_tools.errors import InputError
from data_tools.files import is_inside, read_json, replace_file, replacing
from data_tools.store.reading import FeatureStore
from data_tools.store.schema import Block, StoreSchema
from data_tools.store.writing import write_store


class OpenSegment:
    """A segment opened for reading.

    Args:
        folder: the index.
        segment: as its manifest states it.
        dim: D of the index's model.

    Raises:
        InputError: a file is missing, damaged or not what the manifest states.
    """

    def __init__(self, folder: Path, segment: Segment, dim: int) -> None:
        self.segment, self.path = segment, folder / f"{segment.name}.h5"
        self.store = FeatureStore(self.path)
        found = (len(self.store), int(self.store.counts.sum()), self.store.dim, self.store.dtype)
        expected = (segment.images, segment.regions, dim, np.dtype(np.float16))
        if found != expected:
            raise InputError(
                f"{self.path}: expected images, regions, dimension and type {expected}, found {found}"
            )
        self.image_ids = self.store.image_ids
        self.files = read_files(folder / f"{segment.name}.json", len(self.store))
        self.alive = np.ones(len(self.store), dtype=bool)
        removed = set(segment.removed)
        if removed:
            self.alive = np.array([image_id not in removed for image_id in self.image_ids])
        self.counts, self.sizes = self.store.counts, self.store.image_sizes
        self.columns = self.store.schema.region_columns
        self._starts = np.concatenate([[0], self.counts.cumsum()])
        self._embeddings = torch.from_numpy(_mapped(self.path, segment.regions, dim))

    def images(self, first: int, last: int) -> Packed:
        """The regions of consecutive images, (m, D) float16, read in place from the mapped file."""
        rows = self._embeddings[self._starts[first] : self._starts[last]]
        return Packed(rows, torch.from_numpy(self._starts[first : last + 1] - self._starts[first]))

    def some_images(self, rows: np.ndarray) -> Packed:
        """The regions of the images at rows (n,) int64, copied, in that order."""
        everything = Packed(self._embeddings, torch.from_numpy(self._starts))
        return everything.take(torch.from_numpy(rows))

    def region_blocks(self, size: int) -> Iterator[np.ndarray]:
        """All regions in blocks of at most (size, D), float32."""
        for rows in self._embeddings.split(size):
            yield rows.float().numpy()

    def spread_regions(self, most: int) -> np.ndarray:
        """(m, D) float32: at most so many regions, evenly spread over the segment."""
        total = len(self._embeddings)
        places = np.linspace(0, total - 1, min(most, total)).astype(np.int64)
        return self._embeddings[torch.from_numpy(places)].float().numpy()

    def image_of(self, regions: np.ndarray) -> np.ndarray:
        """Of regions, by their numbers in the segment (n,) int64, the rows of the images that hold them."""
        return np.searchsorted(self._starts, regions, side="right") - 1

    def bounds(self, max_regions: int) -> list[tuple[int, int]]:
        """First and last image, the latter excluded, of groups of about `max_regions` regions."""
        groups, first = [], 0
        while first < len(self.counts):
            last = int(np.searchsorted(self._starts, self._starts[first] + max_regions, side="right")) - 1
            last = max(last, first + 1)
            groups.append((first, last))
            first = last
        return groups


def _mapped(path: Path, regions: int, dim: int) -> np.ndarray:
    """(M, D) float16, mapped copy-on-write, which PyTorch takes without a warning; nothing writes to it."""
    if not regions:
        return np.empty((0, dim), np.float16)
    with h5py.File(path, "r") as file:
        features = file["features"]
        offset, size = features.id.get_offset(), features.id.get_storage_size()
    if offset is None or size != 2 * regions * dim:
        raise InputError(f"{path}: features: expected them contiguous in this file, as chan index writes them")
    return np.memmap(path, "<f2", "c", offset=offset, shape=(regions, dim))


def write_segment(
    folder: Path,
    name: str,
    blocks: Iterable[Block],
    schema: StoreSchema,
    files: Sequence[str],
    attributes: dict[str, str],
) -> None:
    """Write the files of a segment, which the index has only when its manifest names it.

    Args:
        folder: the index.
        name: of the segment.
        blocks: the images in order, with embeddings as `features`.
        schema: of the store.
        files: the file of each image, relative to the images folder; empty texts where there is none.
        attributes: kept with the store.

    Raises:
        InputError: the disk is full or the folder cannot be written.
    """
    replace_file(folder / f"{name}.json", json.dumps(list(files), ensure_ascii=False).encode())
    with replacing(folder / f"{name}.h5") as temporary:
        write_store(temporary, blocks, schema, attributes)


def read_files(path: Path, images: int) -> list[str]:
    """The files of a segment's images; `InputError` unless there is one text per image that leads nowhere else."""
    document = read_json(path)
    if not isinstance(document, list) or len(document) != images:
        raise InputError(f"{path}: expected a list of {images} files")
    for file in document:
        if not isinstance(file, str) or (file and not is_inside(file)):
            raise InputError(f"{path}: expected files relative to the images folder, found {file!r}")
    return document
