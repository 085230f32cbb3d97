"""Checks of the image files: present, decodable, and no two identical."""

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from data_tools.checks.findings import Case, Report
from data_tools.checks.splits import CheckedSplits
from data_tools.console import Progress
from data_tools.errors import InputError
from data_tools.images.decoding import read_image

_HASHED = 1 << 20  # bytes at a time


def check_images(
    images: Path, mapping: Mapping[str, str], checked: CheckedSplits, sample: int | None, report: Report
) -> dict[str, tuple[int, int]]:
    """Check the files of the splits' images, or of the whole mapping if there is no split.

    Files of equal length are compared by their bytes.

    Args:
        images: the images folder.
        mapping: file by image id.
        checked: the splits.
        sample: number of images to decode, spread evenly; None decodes all.
        report: receives the findings.

    Returns:
        (height, width) of each decoded image, by id.
    """
    split_of = {i: name for name, split in checked.splits.items() for i in split.image_ids}
    wanted = [image_id for image_id in split_of if image_id in mapping] or list(mapping)
    present = [image_id for image_id in wanted if (images / mapping[image_id]).is_file()]
    found = set(present)
    missing: list[Case] = [(None, f"image {i}: {mapping[i]}: no such file") for i in wanted if i not in found]
    report.add("images", images, missing, "add the files, or remove the ids from the splits")
    _check_equal(images, mapping, present, split_of, report)
    chosen = present
    if sample is not None and sample < len(present):
        chosen = [present[position] for position in np.linspace(0, len(present) - 1, sample).astype(int)]
    sizes: dict[str, tuple[int, int]] = {}
    damaged: list[Case] = []
    with Progress("decode", len(chosen), "images") as bar:
        for image_id in chosen:
            try:
                height, width, _ = read_image(images / mapping[image_id]).shape
                sizes[image_id] = height, width
            except InputError as error:
                reason = str(error).split(": ", 1)[-1]
                damaged.append((None, f"image {image_id}: {mapping[image_id]}: {reason}"))
            bar.advance()
    report.add("images", images, damaged, "download the files again, or remove the ids from the splits")
    report.facts.append(f"images: {len(present)} files in {images}, {len(chosen)} of them decoded")
    return sizes


def _check_equal(
    images: Path, mapping: Mapping[str, str], ids: list[str], split_of: Mapping[str, str], report: Report
) -> None:
    """Find files with equal bytes; only files of equal length are read."""
    by_length: defaultdict[int, list[str]] = defaultdict(list)
    for image_id in ids:
        by_length[(images / mapping[image_id]).stat().st_size].append(image_id)
    across: list[Case] = []
    within: list[Case] = []
    for same_length in by_length.values():
        if len(same_length) < 2:
            continue
        first: dict[bytes, str] = {}
        for image_id in same_length:
            other = first.setdefault(_digest(images / mapping[image_id]), image_id)
            if other == image_id or mapping[other] == mapping[image_id]:
                continue
            one, two = split_of.get(other, "no split"), split_of.get(image_id, "no split")
            message = f"images {other} ({one}) and {image_id} ({two}) have identical files"
            (within if one == two else across).append((None, message))
    report.add("duplicates", images, across, "keep the image in one split only")
    report.add("duplicates", images, within, "remove one of the two ids", fatal=False)


def _digest(path: Path) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while piece := file.read(_HASHED):
            digest.update(piece)
    return digest.digest()
