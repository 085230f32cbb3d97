"""Splits in SCAN's layout: `{split}_ids.txt` and `{split}_caps.txt`.

Shapes: N images, C captions.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_tools.errors import InputError
from data_tools.files import read_text


@dataclass(frozen=True)
class Split:
    """The images of a split and their captions, in the order of its files.

    Attributes:
        name: for instance train.
        image_ids: N distinct ids.
        captions: C texts.
        caption_images: (C,) int64, the position in `image_ids` of each caption's image.
    """

    name: str
    image_ids: list[str]
    captions: list[str]
    caption_images: np.ndarray

    def first(self, images: int) -> "Split":
        """The split of the first images and their captions; the whole where it has no more images.

        >>> split = Split("dev", ["7", "3"], ["a cat", "a dog", "a black cat"], np.array([0, 1, 0]))
        >>> split.first(1).captions
        ['a cat', 'a black cat']
        """
        kept = np.flatnonzero(self.caption_images < images)
        captions = [self.captions[caption] for caption in kept]
        return Split(self.name, self.image_ids[:images], captions, self.caption_images[kept])


def read_ids(path: Path) -> list[str]:
    """The ids of a file with one id per line, repeated ids included; blank lines at the end are ignored.

    Raises:
        InputError: the file is missing, has no id, or has an empty line before the last id.
    """
    ids = [line.strip() for line in read_text(path).rstrip().splitlines()]
    for number, image_id in enumerate(ids, start=1):
        if not image_id:
            raise InputError(f"{path}, line {number}: expected an image id, found an empty line")
    if not ids:
        raise InputError(f"{path}: expected one image id per line, found none")
    return ids


def load_split(precomp: Path, name: str) -> Split:
    """Read the ids and captions of a split.

    Both public layouts of an ids file are accepted: one line per caption, in which an image with five captions
    has five equal lines, or one line per image, each of which then has five captions.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "dev_ids.txt").write_text("7\\n7\\n3\\n")
    ...     _ = Path(folder, "dev_caps.txt").write_text("a cat\\na black cat\\na dog\\n")
    ...     split = load_split(Path(folder), "dev")
    >>> split.image_ids, split.captions, split.caption_images.tolist()
    (['7', '3'], ['a cat', 'a black cat', 'a dog'], [0, 0, 1])

    Args:
        precomp: the folder of the split files.
        name: the split, for instance dev.

    Raises:
        InputError: a file is missing or not UTF-8, or the numbers of lines fit neither layout.
    """
    ids_file, captions_file = precomp / f"{name}_ids.txt", precomp / f"{name}_caps.txt"
    if not ids_file.is_file():
        known = sorted(path.name.removesuffix("_ids.txt") for path in precomp.glob("*_ids.txt"))
        raise InputError(f"{ids_file}: no such file; the splits of the folder are {', '.join(known) or 'none'}")
    ids = read_ids(ids_file)
    captions = [line.strip() for line in read_text(captions_file).removesuffix("\n").split("\n")]
    if len(captions) == len(ids):
        ids_of_captions = ids
    elif len(captions) == 5 * len(ids):
        ids_of_captions = [image_id for image_id in ids for _ in range(5)]
    else:
        raise InputError(
            f"{captions_file}: {len(captions)} captions for the {len(ids)} lines of {ids_file.name}; "
            "expected one or five per line"
        )
    positions: dict[str, int] = {}
    for image_id in ids_of_captions:
        positions.setdefault(image_id, len(positions))
    caption_images = np.array([positions[image_id] for image_id in ids_of_captions], dtype=np.int64)
    return Split(name, list(positions), captions, caption_images)
