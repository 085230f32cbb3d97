"""An index, opened for reading: the region embeddings of a collection of images, computed once, to search in.

Shapes: N images of the index, D joint dimension.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from chan.packing import Packed, join
from chan.retrieval.manifest import Manifest, read_manifest
from chan.retrieval.segments import OpenSegment
from data_tools.errors import InputError


class ImageIndex:
    """An index opened for reading; an image is known by its position among those that were not removed.

    Args:
        folder: the index.
        manifest: what it holds; None reads it.

    Attributes:
        manifest: what it holds.
        dim: D.
        image_ids: N ids, in the order in which they were added.
        segment_positions: for each segment the position of each of its images, -1 of a removed one.

    Raises:
        InputError: there is no index, or it is damaged.
    """

    def __init__(self, folder: Path, manifest: Manifest | None = None) -> None:
        self.folder, self.manifest = folder, manifest or read_manifest(folder)
        self.dim = self.manifest.dim
        self.segments = [OpenSegment(folder, segment, self.dim) for segment in self.manifest.segments]
        self.segment_positions = self._positions_by_segment()
        places = [
            (number, row)
            for number, segment in enumerate(self.segments)
            for row in np.flatnonzero(segment.alive).tolist()
        ]
        self._places = np.array(places, dtype=np.int64).reshape(-1, 2)
        self.image_ids = [self.segments[number].image_ids[row] for number, row in places]
        self.positions = {image_id: position for position, image_id in enumerate(self.image_ids)}
        if len(self.positions) != len(self.image_ids):
            raise InputError(f"{folder}: damaged: an image is in two segments")

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def region_count(self) -> int:
        """How many regions the N images have."""
        return int(sum(segment.counts[segment.alive].sum() for segment in self.segments))

    @property
    def images_folder(self) -> Path | None:
        """The folder of the images; None if it is not known."""
        return None if self.manifest.images is None else self.folder / self.manifest.images

    def position(self, image_id: str) -> int:
        """The position of an image; `InputError` if the index does not hold it."""
        if image_id not in self.positions:
            raise InputError(f"{self.folder}: holds no image {image_id}")
        return self.positions[image_id]

    def file(self, position: int) -> Path | None:
        """The image file at a position; None if it is not known. It may not exist any more."""
        segment, row = self._place(position)
        name, folder = segment.files[row], self.images_folder
        return folder / name if folder is not None and name else None

    def regions(self, positions: Sequence[int]) -> Packed:
        """The embeddings of the images at these positions, (R, D) float16, in that order."""
        parts = []
        for position in positions:
            segment, row = self._place(position)
            parts.append(segment.images(row, row + 1))
        return join(parts)

    def column(self, position: int, name: str) -> np.ndarray | None:
        """A column of the store for the regions (K, ...) of an image: boxes, class_ids, ...; None without it."""
        segment, row = self._place(position)
        return segment.store.gather_column(name, np.array([row])) if name in segment.columns else None

    def boxes(self, position: int) -> np.ndarray | None:
        """(K, 4) boxes of the regions of an image, NaN for a region that has none; None where none has one."""
        segment, row = self._place(position)
        return segment.store.boxes(row)

    def labels(self, position: int) -> list[str] | None:
        """Attribute and class of each region of an image, as "red car"; None where they have no names."""
        nouns = self._names(position, "class")
        adjectives = self._names(position, "attribute")
        if nouns is None or adjectives is None:
            return nouns
        return [" ".join(filter(None, pair)) for pair in zip(adjectives, nouns, strict=True)]

    def _names(self, position: int, kind: str) -> list[str] | None:
        """The class or attribute names of an image's regions; an empty text for an id that has none."""
        ids, names = self.column(position, f"{kind}_ids"), self.manifest.features.get(f"{kind}_names")
        if ids is None or not names:
            return None
        listed = names.split("\n")
        return [listed[number] if 0 <= number < len(listed) else "" for number in ids.tolist()]

    def size(self, position: int) -> tuple[int, int] | None:
        """Height and width of an image in pixels; None if they are not known."""
        segment, row = self._place(position)
        return None if segment.sizes is None else (int(segment.sizes[row, 0]), int(segment.sizes[row, 1]))

    def chunks(
        self, max_regions: int, segments: Sequence[int] | None = None
    ) -> Iterator[tuple[np.ndarray, Packed]]:
        """All embeddings in order, in groups of about `max_regions`: positions (n,) int64, and their regions.

        Removed images are among the regions, with position -1. `segments` limits it to segments by their numbers.
        """
        for number in range(len(self.segments)) if segments is None else segments:
            segment, positions = self.segments[number], self.segment_positions[number]
            for first, last in segment.bounds(max_regions):
                yield positions[first:last], segment.images(first, last)

    def _positions_by_segment(self) -> list[np.ndarray]:
        numbered, first = [], 0
        for segment in self.segments:
            positions = np.full(len(segment.alive), -1, dtype=np.int64)
            alive = int(segment.alive.sum())
            positions[segment.alive] = np.arange(first, first + alive)
            numbered.append(positions)
            first += alive
        return numbered

    def _place(self, position: int) -> tuple[OpenSegment, int]:
        number, row = self._places[position].tolist()
        return self.segments[number], row
