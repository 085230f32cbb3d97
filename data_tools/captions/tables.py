"""Captions from a table of (image, caption), with random splits if it names none."""

import math
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from data_tools.captions.cells import excerpt
from data_tools.captions.collection import CaptionedImage, clean_caption
from data_tools.captions.rows import Row, read_rows
from data_tools.errors import InputError, UsageError
from data_tools.files import is_inside
from data_tools.layout import is_image_id

SPLITS = {
    "train": "train", "restval": "train", "dev": "dev", "val": "dev", "valid": "dev", "validation": "dev",
    "test": "test",
}  # fmt: skip


@dataclass
class _Image:
    """The rows of one image."""

    line: int  # of the first row
    split: str
    captions: list[str] = field(default_factory=list)
    caption_ids: list[str] = field(default_factory=list)


def read_caption_table(
    path: Path, dev: float, test: float, seed: int, notes: list[str] | None = None
) -> list[CaptionedImage]:
    """The images of a table in one of the forms of `data_tools.captions.rows`, in the order of their first rows.

    A column `split` gives the split of an image (train, dev or val, test); without it, images are assigned at
    random. A column `caption_id` gives the ids of captions; without it they are the captions' numbers from 1. The
    id of an image is its file name without extension, preceded by its folders if file names alone are not
    distinct.

    Args:
        path: the table.
        dev, test: number of images of these splits, or fractions below 1, for a table without splits.
        seed: of the random assignment.
        notes: what the user should know is added to it, one line each.

    Raises:
        InputError: the table is malformed or assigns an image to two splits; the message gives the line.
        UsageError: the file has another extension, or dev and test leave no image for training.
    """
    images: dict[str, _Image] = {}
    lines_of_ids: dict[tuple[str, str], int] = {}
    files: dict[str, str] = {}  # by their names as written
    number = 0
    for row in read_rows(path, [] if notes is None else notes):
        file = files.get(row.image) or files.setdefault(row.image, _file(path, row))
        split = _split(path, row)
        image = images.get(file) or images.setdefault(file, _Image(row.line, split))
        if image.split != split:
            raise InputError(
                f"{path}, line {row.line}: {file[:80]} is in {split}, but in {image.split} on line {image.line}"
            )
        for position, caption in enumerate(row.captions):
            number += 1
            image.captions.append(clean_caption(caption))
            image.caption_ids.append(row.caption_ids[position] if row.caption_ids else str(number))
            if row.caption_ids:
                _check_caption_id(path, row.line, split, image.caption_ids[-1], lines_of_ids)
    if not images:
        raise InputError(f"{path}: expected rows of (image, caption), found none")
    splits = [image.split for image in images.values()]
    if not any(splits):
        splits = assign_random_splits(len(images), dev, test, seed)
    ids = _ids(list(images))
    for image_id, image in zip(ids, images.values(), strict=True):
        if not is_image_id(image_id):
            raise InputError(
                f"{path}, line {image.line}: id {excerpt(image_id)}: expected printable characters without space "
                "around them; fix: give the file another name"
            )
    return [
        CaptionedImage(image_id, file, split, tuple(image.captions), tuple(image.caption_ids))
        for image_id, split, (file, image) in zip(ids, splits, images.items(), strict=True)
    ]


def _check_caption_id(
    path: Path, line: int, split: str, caption_id: str, lines: dict[tuple[str, str], int]
) -> None:
    if not is_image_id(caption_id):
        raise InputError(f"{path}, line {line}: caption_id: expected printable text, found {excerpt(caption_id)}")
    first = lines.setdefault((split, caption_id), line)
    if first != line:
        raise InputError(
            f"{path}, line {line}: caption id {caption_id[:40]} is on line {first} too; fix: give each caption "
            "its own id, or leave the column out"
        )


def assign_random_splits(images: int, dev: float, test: float, seed: int) -> list[str]:
    """The split (train, dev or test) of each image, drawn at random.

    >>> sorted(assign_random_splits(10, 0.2, 1, seed=0))[:4]
    ['dev', 'dev', 'test', 'train']

    Args:
        images: number of images.
        dev, test: number of images of these splits, or fractions below 1, rounded to the nearest number.
        seed: equal seeds give equal assignments.

    Raises:
        UsageError: the sizes leave no image for training, or are no numbers of images.
    """
    for name, size in (("--dev", dev), ("--test", test)):
        if not math.isfinite(size) or size < 0 or (size >= 1 and size != int(size)):
            raise UsageError(f"{name} {size:g}: expected a number of images, or a share below 1")
    sizes = [round(size * images) if size < 1 else int(size) for size in (dev, test)]
    if sum(sizes) >= images:
        raise UsageError(f"--dev {dev:g} and --test {test:g} leave none of the {images} images for training")
    order = np.random.default_rng(seed).permutation(images)
    splits = np.full(images, "train")
    splits[order[: sizes[0]]] = "dev"
    splits[order[sizes[0] : sum(sizes)]] = "test"
    return splits.tolist()


def _file(path: Path, row: Row) -> str:
    name = row.image
    if not is_inside(name) or "://" in name or any(ord(mark) < 32 or ord(mark) == 127 for mark in name):
        raise InputError(
            f"{path}, line {row.line}: expected a file in the images folder, found {excerpt(name, 80)}"
        )
    return str(PurePosixPath(name))


def _split(path: Path, row: Row) -> str:
    if row.split is None:
        return ""
    name = row.split.lower()
    if name not in SPLITS:
        raise InputError(f"{path}, line {row.line}: split {excerpt(row.split)} is not one of {', '.join(SPLITS)}")
    return SPLITS[name]


def _ids(files: list[str]) -> list[str]:
    """Image ids: the file names without extension, else with their folders, else the files themselves."""
    paths = [PurePosixPath(file) for file in files]
    stems, without_endings = [path.stem for path in paths], [str(path.with_suffix("")) for path in paths]
    return next((names for names in (stems, without_endings) if len(set(names)) == len(names)), files)
