"""The manifest of an index: which segments it has, which images were removed, what made it.

INDEX/manifest.json     this; replaced as a whole, so that a killed writer leaves the index before or after
INDEX/segment-N.h5      a feature store whose features are the model's region embeddings (M, D), float16
INDEX/segment-N.json    the files of its images, in the same order, relative to the images folder
INDEX/segment-N.faiss   of a large segment: lists of similar regions, for the search by candidates
INDEX/model/            the run folder's model: configuration, tokenizer, best weights

A segment is never changed. A file that the manifest does not name was left by a killed writer; the next one
removes it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from data_tools.errors import InputError
from data_tools.files import read_json, replace_file

FORMAT, FORMAT_VERSION = "image-index", 1
MANIFEST = "manifest.json"
MODEL = "model"


@dataclass(frozen=True)
class Segment:
    """Files of the index.

    Attributes:
        name: without ending.
        images: how many it has.
        regions: that they have together.
        removed: ids of the images that were removed.
        lists: whether there are lists for the search by candidates.
    """

    name: str
    images: int
    regions: int
    removed: tuple[str, ...] = ()
    lists: bool = False


@dataclass(frozen=True)
class Manifest:
    """What an index holds.

    Attributes:
        weights_sha256: of the model's weights.
        dim: D, the joint dimension of its embeddings.
        features: how the region features were made, as their file states it.
        images: the folder of the images, absolute or relative to the index; None if there is none.
        segments: in the order of the images.
        written: how many segments were ever begun; the next one gets this number.
    """

    weights_sha256: str
    dim: int
    features: Mapping[str, str] = field(default_factory=dict)
    images: str | None = None
    segments: tuple[Segment, ...] = ()
    written: int = 0

    def next_name(self) -> str:
        """The name of the next segment."""
        return f"segment-{self.written}"

    def with_segment(self, images: int, regions: int, lists: bool = False) -> "Manifest":
        """This manifest and the segment `next_name()`."""
        added = Segment(self.next_name(), images, regions, lists=lists)
        return replace(self, segments=(*self.segments, added), written=self.written + 1)

    def save(self, folder: Path) -> None:
        """Write to an index folder, whole or not at all."""
        document = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}
        replace_file(folder / MANIFEST, json.dumps(document, indent=1, ensure_ascii=False).encode())


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an index folder.

    Raises:
        InputError: the folder holds no index, or one of another version, or the manifest is damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(
            f"{folder}: holds no index (no {MANIFEST}); fix: make one with chan index RUN --out {folder}"
        )
    document = read_json(path)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise InputError(f"{path}: expected the manifest of an index, an object with the format {FORMAT!r}")
    if document.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{path}: format version {document.get('format_version')}; this program reads {FORMAT_VERSION}"
        )
    return _parsed(path, document)


def _parsed(path: Path, document: dict[str, Any]) -> Manifest:
    def texts(value: Any, what: str) -> tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
            raise InputError(f"{path}: {what}: expected a list of texts")
        return tuple(value)

    def count(value: Any, what: str) -> int:
        if type(value) is not int or value < 0:
            raise InputError(f"{path}: {what}: expected a whole number, 0 or more")
        return value

    features, listed = document.get("features"), document.get("segments")
    if not isinstance(features, dict) or not all(isinstance(value, str) for value in features.values()):
        raise InputError(f"{path}: features: expected an object of texts")
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        raise InputError(f"{path}: segments: expected a list of objects")
    if not isinstance(document.get("images"), str | None) or not isinstance(document.get("weights_sha256"), str):
        raise InputError(f"{path}: images and weights_sha256: expected texts")
    written = count(document.get("written"), "written")
    names = {f"segment-{number}" for number in range(min(written, 1 << 20))}
    segments = []
    for entry in listed:
        if entry.get("name") not in names:  # no other file is ever opened
            raise InputError(f"{path}: segments: expected names segment-N with N below {written}")
        removed = texts(entry.get("removed"), "removed")
        images, regions = count(entry.get("images"), "images"), count(entry.get("regions"), "regions")
        lists = entry.get("lists", False)
        if not isinstance(lists, bool):
            raise InputError(f"{path}: lists: expected true or false")
        segments.append(Segment(entry["name"], images, regions, removed, lists))
    return Manifest(
        weights_sha256=document["weights_sha256"],
        dim=count(document.get("dim"), "dim"),
        features=features,
        images=document.get("images"),
        segments=tuple(segments),
        written=written,
    )
