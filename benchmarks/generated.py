"""A data set of random features and drawn captions, of any size, in the project's layout."""

from collections.abc import Iterator, Mapping
from itertools import accumulate
from pathlib import Path

import numpy as np

from data_tools.store.schema import Block, StoreSchema
from data_tools.store.writing import write_store

CAPTIONS = 5  # of an image
LENGTHS = (8, 14)  # fewest and most words of a caption: COCO's have 10.5 on average
VOCABULARY = 8000
BLOCK = 100  # images written at a time


def write_data(folder: Path, splits: Mapping[str, int], regions: int, dim: int) -> Path:
    """Write `folder`/precomp with a float16 store and, for each split, its ids and captions; `folder`.

    Args:
        folder: where; made if absent.
        splits: the number of images of each.
        regions: of every image.
        dim: numbers of a feature.
    """
    precomp = folder / "precomp"
    precomp.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for end, (name, images) in zip(accumulate(splits.values()), splits.items(), strict=True):
        ids = range(end - images, end)
        (precomp / f"{name}_ids.txt").write_text("".join(f"{i}\n" for i in ids))
        captions = (_caption(random) for _ in range(CAPTIONS * images))
        (precomp / f"{name}_caps.txt").write_text("".join(f"{caption}\n" for caption in captions))
    images = sum(splits.values())
    shape = StoreSchema(images, images * regions, dim, "<f2", (), False, len(str(images)))
    write_store(precomp / "features.h5", _blocks(images, regions, dim, random), shape, {"selection": "random"})
    return folder


def _caption(random: np.random.Generator) -> str:
    words = random.integers(VOCABULARY, size=random.integers(LENGTHS[0], LENGTHS[1], endpoint=True))
    return " ".join(f"word{word}" for word in words.tolist())


def _blocks(images: int, regions: int, dim: int, random: np.random.Generator) -> Iterator[Block]:
    for first in range(0, images, BLOCK):
        ids = [str(i) for i in range(first, min(first + BLOCK, images))]
        # As bottom-up attention's: never negative, mostly small.
        features = np.abs(random.standard_normal((len(ids) * regions, dim), dtype=np.float32)).astype(np.float16)
        yield Block(ids, np.full(len(ids), regions), {"features": features})
