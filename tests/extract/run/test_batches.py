"""Which images share a batch, with images of COCO's sizes; `pytest -s` prints the mean batches.

The shares of the sizes are an assumption: the most frequent ones of COCO from memory, and a sixth of the images
with one of 1,500 others.
"""

import itertools
from collections import Counter
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_tools.images.decoding import decode_image, upright_size
from extract.choices import BATCH_SIZES, PART_SIZES, RunOptions
from extract.detector.resizing import Resizing
from extract.regions.selection import CaffeSelection
from extract.run import loading
from extract.run.batches import WAITING, BatchRunner, _Part
from extract.run.loading import Decoded, reading_order
from extract.run.sources import SourceImage, Sources

RESIZING = Resizing("caffe", 600, 1000)
SHARES = {  # height, width: share
    **{(480, 640): 0.25, (427, 640): 0.15, (640, 480): 0.085, (426, 640): 0.05, (375, 500): 0.05},
    **{(640, 427): 0.045, (425, 640): 0.04, (500, 375): 0.02, (333, 500): 0.02, (428, 640): 0.02},
    **{(424, 640): 0.02, (612, 612): 0.02, (640, 426): 0.015, (640, 640): 0.015, (360, 640): 0.015},
    **{(640, 425): 0.012, (500, 333): 0.01, (429, 640): 0.01, (423, 640): 0.01, (478, 640): 0.01},
}
IMAGES = 16 * 512


def coco_like(seed: int) -> list[tuple[int, int]]:
    rng = np.random.default_rng(seed)
    rare = [(side, 640) for side in range(150, 640)] + [(640, side) for side in range(150, 640)]
    rare += [(side, 500) for side in range(140, 400)] + [(500, side) for side in range(140, 400)]
    sizes = [*SHARES, *rare]
    left = 1 - sum(SHARES.values())
    chances = [*SHARES.values(), *[left / len(rare)] * len(rare)]
    return [sizes[n] for n in rng.choice(len(sizes), IMAGES, p=np.array(chances) / sum(chances))]


def batches_of(sizes: list[tuple[int, int]], order: list[int], part: int, batch: int) -> list[list[Decoded]]:
    """The batches that `BatchRunner` makes of images of these sizes; it never keeps more of them than it may."""
    sources = Sources(Path(), [SourceImage(str(n), f"{n}.jpg") for n in range(len(sizes))])
    detector: Any = SimpleNamespace(device=torch.device("cpu"), resizing=RESIZING)
    runner = BatchRunner(detector, CaffeSelection(1, 1), sources, RunOptions(batch_size=batch))
    pulled = itertools.count()
    made: list[list[Decoded]] = []
    taken = 0

    def decoded():
        for position in order:
            assert next(pulled) - taken < WAITING * batch
            geometry = RESIZING.geometry(*sizes[position])
            yield Decoded(position, 0.0, np.broadcast_to(np.float32(0), (3, *geometry.resized)), geometry)

    images = decoded()
    for first in range(0, len(sizes), part):
        for group in runner._batches(_Part(range(first, min(first + part, len(sizes))), lambda _: None), images):
            assert len({item.pixels.shape for item in group}) == 1
            taken += len(group)
            made.append(group)
    assert sorted(item.position for group in made for item in group) == list(range(len(sizes)))
    return made


def evicting_the_fullest(sizes: list[tuple[int, int]], part: int, batch: int) -> list[int]:
    """The sizes of batches where the shape of the most images goes first, as it was done before."""
    made: list[int] = []
    for first in range(0, len(sizes), part):
        waiting: Counter[tuple[int, int]] = Counter()
        for size in sizes[first : first + part]:
            waiting[RESIZING.geometry(*size).resized] += 1
            fullest, count = waiting.most_common(1)[0]
            if waiting.total() >= WAITING * batch or count >= batch:
                made.append(waiting.pop(fullest))
        made += waiting.values()
    return made


def ordered(sizes: list[tuple[int, int]], part: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    images = [SourceImage(str(n), f"{n}.jpg") for n in range(len(sizes))]
    monkeypatch.setattr(loading, "upright_size", lambda path: sizes[int(path.stem)])
    spans = [range(first, min(first + part, len(sizes))) for first in range(0, len(sizes), part)]
    return list(reading_order(Path(), images, spans, RESIZING))


def test_shapes_meet_where_images_are_read_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, part, batch = coco_like(0), PART_SIZES["cuda"], BATCH_SIZES["cuda"]
    listed = list(range(len(sizes)))
    order = ordered(sizes, part, monkeypatch)
    assert order != listed
    before = mean(evicting_the_fullest(sizes, 256, batch))
    unordered = mean(map(len, batches_of(sizes, listed, 256, batch)))
    now = [len(group) for group in batches_of(sizes, order, part, batch)]
    alone = sum(size for size in now if size <= 2) / len(sizes)
    print(
        f"\nmean batch: {before:.2f} before, {unordered:.2f} with the oldest shape first, {mean(now):.2f} in order"
    )
    print(f"images in batches of one or two: {alone:.0%}")
    assert 1.9 < before < 2.4
    assert 2.5 < unordered < 3.1
    assert 3.6 < mean(now) < 4.4
    assert alone < 0.2


@pytest.mark.parametrize("part", [1, 7, 64])
def test_each_span_is_ordered_alone_and_equal_shapes_keep_the_lists_order(part, monkeypatch) -> None:
    sizes = coco_like(1)[:200]
    order = ordered(sizes, part, monkeypatch)
    for first in range(0, 200, part):
        own = order[first : first + part]
        assert sorted(own) == list(range(first, min(first + part, 200)))
        shapes = [RESIZING.geometry(*sizes[position]).resized for position in own]
        assert len(list(itertools.groupby(shapes))) == len(set(shapes))
        for _, group in itertools.groupby(own, key=lambda position: RESIZING.geometry(*sizes[position]).resized):
            assert (places := list(group)) == sorted(places)


def test_the_shape_that_waits_longest_goes_first() -> None:
    sizes = [(400, 400 + 10 * n) for n in (0, 1, 1, 2, 3, 4, 5, 6, 7)]
    made = batches_of(sizes, list(range(9)), 9, 2)
    assert [[item.position for item in group] for group in made] == [[1, 2], [0], [3], [4], [5], [6], [7], [8]]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_the_header_has_the_size_of_the_upright_image(tmp_path, orientation, ending) -> None:
    """Of a PNG file the orientation is not looked for."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (30, 20)).save(tmp_path / f"a.{ending}", exif=exif)
    found = upright_size(tmp_path / f"a.{ending}")
    if ending == "jpg":
        assert found == decode_image(tmp_path / "a.jpg").shape[:2]
    assert found in ((20, 30), (30, 20))


def test_a_file_without_a_header_has_no_size(tmp_path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no image")
    assert upright_size(tmp_path / "a.jpg") is None
    assert upright_size(tmp_path / "b.jpg") is None
