"""Karpathy's splits of COCO, Flickr30K and Flickr8K: `dataset_*.json`."""

from pathlib import Path
from typing import Any

from data_tools.captions.collection import CaptionedImage, one_line
from data_tools.errors import InputError

SCAN_SPLITS = {"train": "train", "restval": "train", "val": "dev", "test": "test"}


def is_karpathy(document: Any) -> bool:
    """Whether a JSON document looks like one of Karpathy's."""
    return isinstance(document, dict) and "images" in document and "annotations" not in document


def read_karpathy(document: Any, source: Path) -> list[CaptionedImage]:
    """The images of a document read from `source`, in its order.

    Ids are COCO's image ids, or the numbers of Flickr's images; COCO's `train` includes `restval`, and its
    5,000 test images are `testall`.

    Raises:
        InputError: the file is not Karpathy's; the message names the image and the key.
    """
    try:
        coco = document.get("dataset") == "coco"
        return [_image(entry, coco) for entry in document["images"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"the key {error} is missing" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{source}: not one of Karpathy's data sets: {reason}") from None


def _image(entry: dict[str, Any], coco: bool) -> CaptionedImage:
    image_id = str(entry["cocoid"] if "cocoid" in entry else entry["imgid"])
    file = f"{entry['filepath']}/{entry['filename']}" if entry.get("filepath") else entry["filename"]
    if not isinstance(file, str):
        raise ValueError(f"image {image_id}: the file name is {file!r}")
    if entry["split"] not in SCAN_SPLITS:
        raise ValueError(f"image {image_id}: split {entry['split']!r} is none of {', '.join(SCAN_SPLITS)}")
    split = SCAN_SPLITS[entry["split"]]
    if coco and split == "test":
        split = "testall"
    sentences = entry["sentences"]
    captions = tuple(one_line(sentence["raw"]) for sentence in sentences)
    named = all("sentid" in sentence for sentence in sentences)
    return CaptionedImage(
        image_id, file, split, captions, tuple(str(s["sentid"]) for s in sentences) if named else ()
    )
