"""A collection of captioned images, cut into splits, and the files that SCAN, VSE-infinity and CHAN read."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from data_tools.errors import InputError
from data_tools.files import replace_file

CAPTIONS_PER_IMAGE = 5  # some COCO images have six or seven; SCAN keeps the first five
COCO_TEST = 1000  # images of COCO's `test`, the first of its 5,000 of `testall`


@dataclass(frozen=True)
class CaptionedImage:
    """An image, its file relative to the images folder, its split and its captions, each on one line.

    `caption_ids` names each caption, or is empty where the source has no names for them.
    """

    image_id: str
    file: str
    split: str
    captions: tuple[str, ...]
    caption_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class SplitSummary:
    """What was written of a split, and how many of its images had not five captions."""

    images: int
    captions: int
    cut: int  # had more captions: the first ones were kept
    short: int  # had fewer: kept as they are
    without: int  # had none: left out

    def __str__(self) -> str:
        unusual = [
            f"{_images(self.cut)} with more captions (the first ones are kept)" if self.cut else "",
            f"{_images(self.short)} with fewer" if self.short else "",
            f"{_images(self.without)} without any (left out)" if self.without else "",
        ]
        captions = f"{self.captions} caption{'s' if self.captions != 1 else ''}"
        return "; ".join([f"{_images(self.images)}, {captions}", *filter(None, unusual)])


def _images(number: int) -> str:
    return f"{number} image{'s' if number != 1 else ''}"


def write_split_files(
    images: Sequence[CaptionedImage], out: Path, source: Path, most: int = CAPTIONS_PER_IMAGE
) -> dict[str, SplitSummary]:
    """Write `OUT/id_mapping.json` and `OUT/precomp/{split}_{ids,caps,capids}.txt`.

    Of an image with more than `most` captions the first `most` are kept (0: all); one with fewer keeps those it
    has; one without any is in the mapping and in no split. Where each image of a split has five, its ids file
    has a line for each image, else one for each caption. A collection that has a split `testall` and none
    called `test` gets one of its first 1,000 images, as COCO has it.

    Raises:
        InputError: two images have one id, an id or a file cannot be used, or there is nothing to write;
            `source` is the file that the message blames.
    """
    if not images:
        raise InputError(f"{source}: holds no image")
    mapping: dict[str, str] = {}
    splits: defaultdict[str, list[CaptionedImage]] = defaultdict(list)
    for image in images:
        _check(image, source)
        if image.image_id in mapping:
            raise InputError(f"{source}: two images have the id {image.image_id}")
        mapping[image.image_id] = image.file
        splits[image.split].append(image)
    if "testall" in splits and "test" not in splits:
        splits["test"] = splits["testall"][:COCO_TEST]
    written = {name: _write_split(out / "precomp", name, members, most) for name, members in splits.items()}
    replace_file(out / "id_mapping.json", json.dumps(mapping).encode())
    return written


def check_files_exist(images: Iterable[CaptionedImage], folder: Path) -> None:
    """Raise `InputError` unless the file of every image lies in `folder`."""
    missing = [image for image in images if not (folder / image.file).is_file()]
    if missing:
        others = f" and those of {len(missing) - 1} others" if len(missing) > 1 else ""
        raise InputError(f"{folder / missing[0].file}: no such file (image {missing[0].image_id}){others}")


def one_line(caption: str) -> str:
    """The caption without line breaks and repeated spaces: it must fill one line of a file."""
    return " ".join(caption.split())


def _check(image: CaptionedImage, source: Path) -> None:
    """What `load_id_mapping` would refuse is not written."""
    image_id, path = image.image_id, PurePosixPath(image.file)
    if not image_id or image_id != image_id.strip() or not image_id.isprintable():
        raise InputError(f"{source}: id {image_id!r}: expected printable characters, no space around them")
    if not image.file or path.is_absolute() or ".." in path.parts:
        raise InputError(f"{source}: image {image_id}: expected a file in the images folder, found {image.file!r}")


def _write_split(precomp: Path, name: str, members: list[CaptionedImage], most: int) -> SplitSummary:
    usual = most or CAPTIONS_PER_IMAGE
    numbers = Counter(
        "cut" if len(i.captions) > usual else "short" if len(i.captions) < usual else "" for i in members
    )
    kept = [_first(image, most) for image in members if image.captions]
    if all(len(image.captions) == CAPTIONS_PER_IMAGE for image in kept):
        ids = [image.image_id for image in kept]
    else:
        ids = [image.image_id for image in kept for _ in image.captions]
    captions = [caption for image in kept for caption in image.captions]
    _write_lines(precomp / f"{name}_ids.txt", ids)
    _write_lines(precomp / f"{name}_caps.txt", captions)
    caption_ids = precomp / f"{name}_capids.txt"
    if all(image.caption_ids for image in kept):
        _write_lines(caption_ids, [i for image in kept for i in image.caption_ids])
    else:
        caption_ids.unlink(missing_ok=True)  # those of an earlier source are not those of these captions
    without = len(members) - len(kept)
    cut = numbers["cut"] if most else 0
    return SplitSummary(len(kept), len(captions), cut, numbers["short"] - without, without)


def _first(image: CaptionedImage, most: int) -> CaptionedImage:
    if not most:
        return image
    return replace(image, captions=image.captions[:most], caption_ids=image.caption_ids[:most])


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    replace_file(path, "".join(f"{line}\n" for line in lines).encode())
