"""Karpathy's splits of COCO and Flickr30K as the files that SCAN, VSE-infinity and CHAN read."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from data_tools.errors import InputError
from data_tools.files import read_json, replace_file

CAPTIONS_PER_IMAGE = 5  # some COCO images have six or seven; SCAN keeps the first five
SCAN_SPLITS = {"train": "train", "restval": "train", "val": "dev", "test": "test"}
COCO_TEST = 1000  # images of COCO's `test`, the first of its 5,000 of `testall`


def write_splits(dataset: Path, out: Path) -> dict[str, int]:
    """Write `OUT/id_mapping.json` and `OUT/precomp/{split}_{ids,caps}.txt` from `dataset_*.json`.

    Ids are COCO's image ids, or the numbers of Flickr30K's images; COCO's `train` includes `restval`, and its
    5,000 test images are `testall`. Each ids file has a line an image, each captions file five lines an image.

    Returns:
        The number of images of each split.

    Raises:
        InputError: the file is not Karpathy's; the message names the image and the key.
    """
    document = read_json(dataset)
    try:
        images = [_image(entry) for entry in document["images"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"the key {error} is missing" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{dataset}: not one of Karpathy's data sets: {reason}") from None
    if not images:
        raise InputError(f"{dataset}: holds no image")
    mapping: dict[str, str] = {}
    splits: defaultdict[str, list[tuple[str, list[str]]]] = defaultdict(list)
    for image_id, file, split, captions in images:
        if image_id in mapping:
            raise InputError(f"{dataset}: two images have the id {image_id}")
        mapping[image_id] = file
        splits[split].append((image_id, captions))
    if document.get("dataset") == "coco":
        splits["testall"] = splits["test"]
        splits["test"] = splits["testall"][:COCO_TEST]
    for name, members in splits.items():
        _write_lines(out / "precomp" / f"{name}_ids.txt", [image_id for image_id, _ in members])
        _write_lines(out / "precomp" / f"{name}_caps.txt", [text for _, texts in members for text in texts])
    replace_file(out / "id_mapping.json", json.dumps(mapping).encode())
    return {name: len(members) for name, members in splits.items()}


def _image(entry: dict[str, Any]) -> tuple[str, str, str, list[str]]:
    """Id, file, SCAN's name of the split and five captions of one image."""
    image_id = str(entry["cocoid"] if "cocoid" in entry else entry["imgid"])
    file = f"{entry['filepath']}/{entry['filename']}" if entry.get("filepath") else entry["filename"]
    if entry["split"] not in SCAN_SPLITS:
        raise ValueError(f"image {image_id}: split {entry['split']!r} is none of {', '.join(SCAN_SPLITS)}")
    captions = [" ".join(sentence["raw"].split()) for sentence in entry["sentences"][:CAPTIONS_PER_IMAGE]]
    if len(captions) < CAPTIONS_PER_IMAGE:
        raise ValueError(f"image {image_id}: {len(captions)} captions, expected at least {CAPTIONS_PER_IMAGE}")
    return image_id, file, SCAN_SPLITS[entry["split"]], captions


def _write_lines(path: Path, lines: list[str]) -> None:
    replace_file(path, "".join(f"{line}\n" for line in lines).encode())
