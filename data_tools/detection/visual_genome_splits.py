"""The images of Visual Genome for training, validation and test: from lists, or drawn at random."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_tools.errors import InputError
from data_tools.files import read_text

SPLITS = ("train", "val", "test")


def read_image_lists(folder: Path) -> dict[str, list[int]]:
    """Image ids of each of `FOLDER/{train,val,test}.txt` that exists.

    A line is an id, or an image and its annotation as in the lists of Anderson et al.
    (`VG_100K/2358453.jpg xml/2358453.xml`), in which case the number in the last name is the id.

    Raises:
        InputError: there is no list, a list is empty, a line is neither form, or an image is listed twice.
    """
    files = {name: folder / f"{name}.txt" for name in SPLITS if (folder / f"{name}.txt").is_file()}
    if not files:
        raise InputError(f"{folder}: holds no list of images; expected train.txt, val.txt, test.txt")
    lists: dict[str, list[int]] = {}
    seen: dict[int, str] = {}
    for name, path in files.items():
        lists[name] = []
        for number, line in enumerate(read_text(path).splitlines(), start=1):
            if not line.strip():
                continue
            image_id = _image_id(line, f"{path}, line {number}")
            if image_id in seen:
                raise InputError(f"{path}, line {number}: image {image_id} is listed in {seen[image_id]} too")
            seen[image_id] = path.name
            lists[name].append(image_id)
        if not lists[name]:
            raise InputError(f"{path}: holds no image")
    return lists


def _image_id(line: str, where: str) -> int:
    stem = Path(line.split()[-1]).name.split(".")[0]
    if not (stem.isascii() and stem.isdecimal()):
        raise InputError(f"{where}: expected ID, or IMAGE.jpg ID.xml, found {line.strip()[:60]!r}")
    return int(stem)


def draw_image_lists(image_ids: Sequence[int], val: int, test: int, seed: int) -> dict[str, list[int]]:
    """Sorted ids of `val` validation images and `test` test images drawn at random; the others are for training.

    The result depends on the seed and the set of ids, not on their order.

    Raises:
        InputError: there are not more images than `val` + `test`.
    """
    if len(image_ids) <= val + test:
        raise InputError(
            f"{len(image_ids)} images with objects: {val} for validation and {test} for test leave none for "
            "training; fix: ask for fewer with --val and --test"
        )
    ids = np.array(sorted(image_ids))
    drawn = np.random.Generator(np.random.PCG64(seed)).permutation(len(ids))
    parts = {"val": drawn[:val], "test": drawn[val : val + test], "train": drawn[val + test :]}
    return {name: np.sort(ids[parts[name]]).tolist() for name in SPLITS}
