"""Karpathy's splits of COCO, Flickr30K and Flickr8K: `dataset_*.json`."""

from pathlib import Path
from typing import Any

from data_tools.captions.cells import excerpt, json_id, json_object, json_text
from data_tools.captions.collection import CaptionedImage, clean_caption
from data_tools.errors import InputError, one_line

SCAN_SPLITS = {"train": "train", "restval": "train", "val": "dev", "test": "test"}


def is_karpathy(document: Any) -> bool:
    """Whether a JSON document has the keys of one of Karpathy's files."""
    return isinstance(document, dict) and "images" in document and "annotations" not in document


def read_karpathy(document: Any, source: Path) -> list[CaptionedImage]:
    """The images of one of Karpathy's files, in the order of the file.

    Image ids are `cocoid` for COCO and `imgid` for Flickr. `restval` counts as `train`, `val` is called `dev`, and
    COCO's 5,000 test images are called `testall`, as in SCAN.

    Args:
        document: the JSON document.
        source: the file that it was read from, for messages.

    Raises:
        InputError: the file is not one of Karpathy's; the message gives the reason.
    """
    problem = f"{source}: not one of Karpathy's datasets"
    if not isinstance(document, dict) or not isinstance(document.get("images"), list):
        raise InputError(f"{problem}: expected an object with a list of images")
    coco = document.get("dataset") == "coco"
    images = []
    for number, entry in enumerate(document["images"]):
        try:
            images.append(_image(entry, coco))
        except (KeyError, ValueError) as error:
            raise InputError(f"{problem}: images[{number}]: {one_line(error)}") from None
    return images


def _image(entry: Any, coco: bool) -> CaptionedImage:
    """One image; `KeyError` for a key that is missing and `ValueError` for a value of another type."""
    json_object(entry)
    image_id = json_id(entry, "cocoid" if "cocoid" in entry else "imgid")
    folder = json_text(entry, "filepath") if entry.get("filepath") else ""
    file = json_text(entry, "filename", f"image {image_id}: ")
    split = json_text(entry, "split")
    if split not in SCAN_SPLITS:
        raise ValueError(f"image {image_id}: split {excerpt(split)} is not one of {', '.join(SCAN_SPLITS)}")
    name = "testall" if coco and split == "test" else SCAN_SPLITS[split]
    sentences = entry["sentences"]
    if not isinstance(sentences, list):
        raise ValueError(f"image {image_id}: sentences: expected a list, found {excerpt(sentences)}")
    captions = tuple(clean_caption(json_text(json_object(each), "raw")) for each in sentences)
    named = all("sentid" in sentence for sentence in sentences)
    return CaptionedImage(
        image_id,
        f"{folder}/{file}" if folder else file,
        name,
        captions,
        tuple(json_id(sentence, "sentid") for sentence in sentences) if named else (),
    )
