"""Captioned images with their splits, and the split files that SCAN, VSE-infinity and CHAN read."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data_tools.errors import InputError
from data_tools.files import is_inside, replace_file
from data_tools.layout import is_image_id

CAPTIONS_PER_IMAGE = 5  # some COCO images have six or seven; SCAN keeps the first five
COCO_TEST = 1000  # images of COCO's `test`, the first ones of the 5,000 of `testall`


@dataclass(frozen=True)
class CaptionedImage:
    """An image with its captions.

    Attributes:
        image_id: printable text without space around it.
        file: relative to the images folder.
        split: name of the split, for instance train.
        captions: texts without line breaks.
        caption_ids: one id per caption, or empty if the source has none.
    """

    image_id: str
    file: str
    split: str
    captions: tuple[str, ...]
    caption_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class SplitSummary:
    """Counts of a written split.

    Attributes:
        images, captions: as written.
        cut: images with more captions than were asked for, of which the first were kept.
        short: images with fewer captions than were asked for, all kept.
        without: images without captions, left out.
        asked: how many captions per image were asked for.
    """

    images: int
    captions: int
    cut: int
    short: int
    without: int
    asked: int

    def __str__(self) -> str:
        unusual = [
            f"{_images(self.cut)} with more captions (the first ones are kept)" if self.cut else "",
            f"{_images(self.short)} with fewer than {self.asked}" if self.short else "",
            f"{_images(self.without)} without any (left out)" if self.without else "",
        ]
        captions = f"{self.captions} caption{'s' if self.captions != 1 else ''}"
        return "; ".join([f"{_images(self.images)}, {captions}", *filter(None, unusual)])


def _images(number: int) -> str:
    return f"{number} image{'s' if number != 1 else ''}"


def write_split_files(
    images: Sequence[CaptionedImage], out: Path, source: Path, max_captions: int = CAPTIONS_PER_IMAGE
) -> dict[str, SplitSummary]:
    """Write `OUT/id_mapping.json` and `OUT/precomp/{split}_{ids,caps,capids}.txt`.

    If every image of a split has five captions, its ids file has one line per image, otherwise one line per
    caption. An image without captions is in the mapping and in no split. If there is a split `testall` and no
    `test`, the first 1,000 images of `testall` are written as `test`, as for COCO.

    Args:
        images: the images, in the order of the files to write.
        out: the folder of the dataset.
        source: the file that the images were read from, for messages.
        max_captions: captions kept per image, the first ones; 0 keeps all.

    Returns:
        Counts by split.

    Raises:
        InputError: two images or two captions of a split have the same id, an id, file or caption is invalid, or
            there is no image.
    """
    if not images:
        raise InputError(f"{source}: holds no image")
    mapping: dict[str, str] = {}
    splits: defaultdict[str, list[CaptionedImage]] = defaultdict(list)
    for image in images:
        _check(image, source)
        if image.image_id in mapping:
            raise InputError(f"{source}: two images have the id {image.image_id[:80]}")
        mapping[image.image_id] = image.file
        splits[image.split].append(image)
    for members in splits.values():
        _check_caption_ids(members, source)
    if "testall" in splits and "test" not in splits:
        splits["test"] = splits["testall"][:COCO_TEST]
    written = {
        name: _write_split(out / "precomp", name, members, max_captions) for name, members in splits.items()
    }
    replace_file(out / "id_mapping.json", json.dumps(mapping).encode())
    return written


def check_files_exist(images: Iterable[CaptionedImage], folder: Path) -> None:
    """Raise `InputError`, which names the first missing file, unless `folder` has the file of every image."""
    missing = [image for image in images if not (folder / image.file).is_file()]
    if missing:
        others = f" and those of {len(missing) - 1} others" if len(missing) > 1 else ""
        raise InputError(f"{folder / missing[0].file}: no such file (image {missing[0].image_id}){others}")


def clean_caption(caption: str) -> str:
    """The caption without line breaks and repeated spaces, so that it is one line of a captions file.

    >>> clean_caption(" A dog\\n on  the beach. ")
    'A dog on the beach.'
    """
    return " ".join(caption.split())


def _check(image: CaptionedImage, source: Path) -> None:
    """`InputError` for an entry that `load_id_mapping` would not accept."""
    if not is_image_id(image.image_id):
        raise InputError(
            f"{source}: id {image.image_id[:80]!r}: expected printable characters without space around them"
        )
    where = f"{source}: image {image.image_id[:80]}"
    if not is_inside(image.file) or not _is_text(image.file) or "\n" in image.file:
        raise InputError(f"{where}: expected a file in the images folder, found {image.file[:80]!r}")
    for number, caption in enumerate(image.captions, start=1):
        if not _is_text(caption):
            raise InputError(f"{where}: caption {number}: expected text, found {caption[:40]!r}")


def _is_text(text: str) -> bool:
    """Whether UTF-8 can hold it, and no NUL is in it."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def _check_caption_ids(members: Sequence[CaptionedImage], source: Path) -> None:
    """`InputError` if ids of a split's captions, which are one line each, are no line or repeated."""
    seen: dict[str, str] = {}
    for image in members:
        for caption_id in image.caption_ids:
            where = f"{source}: image {image.image_id[:80]}: caption id {caption_id[:80]!r}"
            if not is_image_id(caption_id):
                raise InputError(f"{where}: expected printable characters without space around them")
            if caption_id in seen:
                raise InputError(f"{where}: image {seen[caption_id][:80]} has a caption with this id too")
            seen[caption_id] = image.image_id


def _write_split(precomp: Path, name: str, members: list[CaptionedImage], max_captions: int) -> SplitSummary:
    expected = max_captions or CAPTIONS_PER_IMAGE
    numbers = Counter(
        "cut" if len(i.captions) > expected else "short" if len(i.captions) < expected else "" for i in members
    )
    kept = [_first(image, max_captions) for image in members if image.captions]
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
        caption_ids.unlink(missing_ok=True)  # those of an earlier source do not belong to these captions
    without = len(members) - len(kept)
    cut = numbers["cut"] if max_captions else 0
    return SplitSummary(len(kept), len(captions), cut, numbers["short"] - without, without, expected)


def _first(image: CaptionedImage, max_captions: int) -> CaptionedImage:
    if not max_captions:
        return image
    return replace(image, captions=image.captions[:max_captions], caption_ids=image.caption_ids[:max_captions])


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    replace_file(path, "".join(f"{line}\n" for line in lines).encode())
