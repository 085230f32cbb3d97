"""COCO's caption files, `captions_{train,val}{2014,2017}.json`, with splits from lists of ids."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_tools.captions.cells import excerpt, json_id, json_object, json_text, number_as_text
from data_tools.captions.collection import CaptionedImage, clean_caption
from data_tools.captions.splits import read_ids
from data_tools.errors import InputError, UsageError, one_line


def read_coco_captions(
    documents: Sequence[tuple[Path, Any]], id_lists: Mapping[str, Path]
) -> list[CaptionedImage]:
    """The images of COCO's caption files, assigned to splits by lists of ids.

    The images of a split are in the order of its list; captions are ordered by annotation id. The images of a file
    `captions_NAME.json` are expected in the folder NAME, as COCO's archives unpack.

    Args:
        documents: each file and its JSON document.
        id_lists: file of ids by split. Without a list for `train`, the images in no list are `train`, in the order
            of the files; with one they are left out.

    Raises:
        InputError: a file is not one of COCO's, or a list names an unknown image or one of another list.
        UsageError: there is no list.
    """
    if not id_lists:
        raise UsageError(
            "COCO's caption files have no splits; fix: give lists of ids, for instance --ids dev=dev_ids.txt"
        )
    found = _Found()
    for path, document in documents:
        _collect(path, document, found)
    files, captions = found.files, found.captions
    members = {name: _read_list(path, files) for name, path in id_lists.items()}
    listed = _check_in_one_list(members, id_lists)
    if "train" not in members:
        members["train"] = [image_id for image_id in files if image_id not in listed]
    images = []
    for split, image_ids in members.items():
        for image_id in image_ids:
            ordered = sorted(captions.get(image_id, []))
            texts, names = (
                tuple(text for _, text in ordered),
                tuple(number_as_text(number) for number, _ in ordered),
            )
            images.append(CaptionedImage(image_id, files[image_id], split, texts, names))
    return images


@dataclass
class _Found:
    """What the caption files hold: files and captions by image id, and the ids of all captions."""

    files: dict[str, str] = field(default_factory=dict)
    captions: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    caption_ids: set[int] = field(default_factory=set)

    def add_image(self, image: Any, folder: str) -> None:
        """Add an entry of `images`; see `add_caption` for the errors."""
        json_object(image)
        image_id = json_id(image, "id")
        if image_id in self.files:
            raise ValueError(f"image {image_id[:40]} is listed twice")
        self.files[image_id] = folder + json_text(image, "file_name", f"image {image_id}: ")

    def add_caption(self, annotation: Any) -> None:
        """Add an entry of `annotations`; `KeyError` or `ValueError` if it is not as in COCO."""
        json_object(annotation)
        number = annotation["id"]
        if isinstance(number, bool) or not isinstance(number, int):
            raise ValueError(f"id {excerpt(number)}: expected a whole number")
        image_id = json_id(annotation, "image_id")
        if image_id not in self.files:
            raise ValueError(
                f"annotation {number_as_text(number)}: image {image_id[:40]} is not in the list of images"
            )
        if number in self.caption_ids:
            raise ValueError(f"annotation {number_as_text(number)} is listed twice")
        self.caption_ids.add(number)
        caption = clean_caption(json_text(annotation, "caption"))
        self.captions.setdefault(image_id, []).append((number, caption))


def _collect(path: Path, document: Any, found: _Found) -> None:
    problem = f"{path}: not one of COCO's caption files"
    named = re.fullmatch(r"captions_(.+)\.json", path.name)
    folder = f"{named[1]}/" if named else ""
    for key in ("images", "annotations"):
        entries = document.get(key) if isinstance(document, dict) else None
        if not isinstance(entries, list):
            raise InputError(f"{problem}: expected an object with a list of {key}")
        for number, entry in enumerate(entries):
            try:
                found.add_image(entry, folder) if key == "images" else found.add_caption(entry)
            except (KeyError, ValueError) as error:
                raise InputError(f"{problem}: {key}[{number}]: {one_line(error)}") from None


def _read_list(path: Path, files: dict[str, str]) -> list[str]:
    """The distinct ids of a list with one line per image, or one per caption as in SCAN's files."""
    ids = dict.fromkeys(read_ids(path))
    for line, image_id in enumerate(read_ids(path), start=1):
        if image_id not in files:
            raise InputError(f"{path}, line {line}: the caption files hold no image {image_id[:80]}")
    return list(ids)


def _check_in_one_list(members: dict[str, list[str]], id_lists: Mapping[str, Path]) -> set[str]:
    holder: dict[str, str] = {}
    for split, image_ids in members.items():
        for image_id in image_ids:
            other = holder.setdefault(image_id, split)
            if other != split:
                raise InputError(f"{id_lists[split]}: image {image_id} is in {id_lists[other]} too")
    return set(holder)
