"""Splits of SCAN's layout: `{split}_ids.txt` and `{split}_caps.txt`."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_tools.errors import InputError
from data_tools.files import read_text


@dataclass(frozen=True)
class Split:
    """The images of a split and their captions, in the order of its files.

    `caption_images` (captions,) int64 gives for each caption the position of its image in `image_ids`.
    """

    name: str
    image_ids: list[str]
    captions: list[str]
    caption_images: np.ndarray


def read_ids(path: Path) -> list[str]:
    """The ids in `path`, one a line, repeated ids included; blank lines at the end are ignored."""
    ids = [line.strip() for line in read_text(path).rstrip().splitlines()]
    for number, image_id in enumerate(ids, start=1):
        if not image_id:
            raise InputError(f"{path}, line {number}: expected an image id, found an empty line")
    if not ids:
        raise InputError(f"{path}: expected one image id a line, found none")
    return ids


def load_split(precomp: Path, name: str) -> Split:
    """Read a split's ids and captions.

    An ids file has a line for each caption (five equal ones an image), or a line for each image, which then
    has five captions: the two public layouts.

    Raises:
        InputError: a file is absent, or the two counts of lines fit neither layout.
    """
    ids_file, captions_file = precomp / f"{name}_ids.txt", precomp / f"{name}_caps.txt"
    if not ids_file.is_file():
        known = sorted(path.name.removesuffix("_ids.txt") for path in precomp.glob("*_ids.txt"))
        raise InputError(f"{ids_file}: no such file; the splits there are {', '.join(known) or 'none'}")
    ids = read_ids(ids_file)
    captions = [line.strip() for line in read_text(captions_file).removesuffix("\n").split("\n")]
    if len(captions) == len(ids):
        ids_of_captions = ids
    elif len(captions) == 5 * len(ids):
        ids_of_captions = [image_id for image_id in ids for _ in range(5)]
    else:
        raise InputError(
            f"{captions_file}: {len(captions)} captions for the {len(ids)} lines of {ids_file.name}; "
            "expected as many, or five times as many"
        )
    positions: dict[str, int] = {}
    for image_id in ids_of_captions:
        positions.setdefault(image_id, len(positions))
    caption_images = np.array([positions[image_id] for image_id in ids_of_captions], dtype=np.int64)
    return Split(name, list(positions), captions, caption_images)
