"""COCO's caption files, `captions_{train,val}{2014,2017}.json`, with splits from lists of ids."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
    files: dict[str, str] = {}
    captions: dict[str, list[tuple[int, str]]] = {}
    for path, document in documents:
        try:
            _collect(path, document, files, captions)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{path}: not one of COCO's caption files: {one_line(error)}") from None
    members = {name: _read_list(path, files) for name, path in id_lists.items()}
    listed = _check_in_one_list(members, id_lists)
    if "train" not in members:
        members["train"] = [image_id for image_id in files if image_id not in listed]
    images = []
    for split, image_ids in members.items():
        for image_id in image_ids:
            ordered = sorted(captions.get(image_id, []))
            texts, names = tuple(text for _, text in ordered), tuple(str(number) for number, _ in ordered)
            images.append(CaptionedImage(image_id, files[image_id], split, texts, names))
    return images


def _collect(path: Path, document: Any, files: dict[str, str], captions: dict[str, list[tuple[int, str]]]) -> None:
    named = re.fullmatch(r"captions_(.+)\.json", path.name)
    for image in document["images"]:
        image_id, file = str(image["id"]), image["file_name"]
        if not isinstance(file, str):
            raise ValueError(f"image {image_id}: file_name {file!r}: expected text")
        files[image_id] = f"{named[1]}/{file}" if named else file
    for annotation in document["annotations"]:
        image_id, caption = str(annotation["image_id"]), clean_caption(annotation["caption"])
        if image_id not in files:
            raise ValueError(f"annotation {annotation['id']}: image {image_id} is not in the list of images")
        captions.setdefault(image_id, []).append((int(annotation["id"]), caption))


def _read_list(path: Path, files: dict[str, str]) -> list[str]:
    """The distinct ids of a list with one line per image, or one per caption as in SCAN's files."""
    ids = dict.fromkeys(read_ids(path))
    for line, image_id in enumerate(read_ids(path), start=1):
        if image_id not in files:
            raise InputError(f"{path}, line {line}: the caption files hold no image {image_id}")
    return list(ids)


def _check_in_one_list(members: dict[str, list[str]], id_lists: Mapping[str, Path]) -> set[str]:
    holder: dict[str, str] = {}
    for split, image_ids in members.items():
        for image_id in image_ids:
            other = holder.setdefault(image_id, split)
            if other != split:
                raise InputError(f"{id_lists[split]}: image {image_id} is in {id_lists[other]} too")
    return set(holder)
