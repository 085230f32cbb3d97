"""Karpathy's splits of COCO, Flickr30K and Flickr8K: `dataset_*.json`."""

from pathlib import Path
from typing import Any

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
    try:
        coco = document.get("dataset") == "coco"
        return [_image(entry, coco) for entry in document["images"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{source}: not one of Karpathy's datasets: {one_line(error)}") from None


def _image(entry: dict[str, Any], coco: bool) -> CaptionedImage:
    image_id = str(entry["cocoid"] if "cocoid" in entry else entry["imgid"])
    file = f"{entry['filepath']}/{entry['filename']}" if entry.get("filepath") else entry["filename"]
    if not isinstance(file, str):
        raise ValueError(f"image {image_id}: filename {file!r}: expected text")
    if entry["split"] not in SCAN_SPLITS:
        raise ValueError(f"image {image_id}: split {entry['split']!r} is not one of {', '.join(SCAN_SPLITS)}")
    split = SCAN_SPLITS[entry["split"]]
    if coco and split == "test":
        split = "testall"
    sentences = entry["sentences"]
    captions = tuple(clean_caption(sentence["raw"]) for sentence in sentences)
    named = all("sentid" in sentence for sentence in sentences)
    return CaptionedImage(
        image_id, file, split, captions, tuple(str(s["sentid"]) for s in sentences) if named else ()
    )
