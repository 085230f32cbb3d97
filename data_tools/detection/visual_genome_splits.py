"""Which images of Visual Genome are for training, validation and test."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_tools.errors import InputError
from data_tools.files import read_text

SPLITS = ("train", "val", "test")


def read_lists(folder: Path) -> dict[str, list[int]]:
    """Image ids of each of `FOLDER/{train,val,test}.txt` that is there.

    A line is an id, or as in the lists of Anderson et al. an image and its annotation
    (`VG_100K/2358453.jpg xml/2358453.xml`), of which the number of the last is the id.

    Raises:
        InputError: there is no list, a line is neither, or a list is empty or has an image that was there before.
    """
    files = {name: folder / f"{name}.txt" for name in SPLITS if (folder / f"{name}.txt").is_file()}
    if not files:
        raise InputError(f"{folder}: expected lists of images train.txt, val.txt, test.txt in it")
    lists: dict[str, list[int]] = {}
    seen: dict[int, str] = {}
    for name, path in files.items():
        lists[name] = []
        for number, line in enumerate(read_text(path).splitlines(), start=1):
            if not line.strip():
                continue
            image_id = _image_id(line, f"{path}, line {number}")
            if image_id in seen:
                raise InputError(f"{path}, line {number}: image {image_id} is in {seen[image_id]} already")
            seen[image_id] = path.name
            lists[name].append(image_id)
        if not lists[name]:
            raise InputError(f"{path}: holds no image")
    return lists


def _image_id(line: str, where: str) -> int:
    stem = Path(line.split()[-1]).name.split(".")[0]
    if not (stem.isascii() and stem.isdecimal()):
        raise InputError(f"{where}: expected an image id, or IMAGE.jpg ID.xml, not {line.strip()[:60]!r}")
    return int(stem)


def draw_splits(image_ids: Sequence[int], val: int, test: int, seed: int) -> dict[str, list[int]]:
    """Ids of a random split: `val` and `test` images, the others for training; the seed decides, not the order.

    Raises:
        InputError: there are not more images than `val` + `test`.
    """
    if len(image_ids) <= val + test:
        raise InputError(f"{len(image_ids)} images with objects do not make {val} + {test} and some for training")
    ids = np.array(sorted(image_ids))
    drawn = np.random.Generator(np.random.PCG64(seed)).permutation(len(ids))
    parts = {"val": drawn[:val], "test": drawn[val : val + test], "train": drawn[val + test :]}
    return {name: np.sort(ids[parts[name]]).tolist() for name in SPLITS}
