import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from data_tools.images.decoding import decode_bgr
from extract.detector.resizing import METHODS, Resizing
from extract.run.loading import AHEAD, load
from extract.run.sources import SourceImage

COUNT = 4 * AHEAD + 3  # more than there are places for


@pytest.fixture
def folder(tmp_path):
    """Pictures of many shapes, the fourth of them cut short."""
    rng = np.random.default_rng(5)
    for number in range(COUNT):
        pixels = rng.integers(0, 256, (20 + number, 30 + 2 * number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:-300])
    return tmp_path


@pytest.fixture
def images():
    return [SourceImage(str(number), f"{number}.png") for number in range(COUNT)]


@pytest.mark.parametrize("method", METHODS)
def test_processes_give_what_a_loop_gives(folder, images, method):
    resizing = Resizing(method, 48, 80, (1.0, 2.0, 3.0))
    order = [*range(COUNT - 1, -1, -1), 5, 5]
    found = []
    for item in load(folder, images, order, resizing, workers=2):
        found.append(item)
        time.sleep(0.005)  # the processes are ahead now
    assert [item.position for item in found] == order
    for item in found:
        if item.position == 3:
            assert item.pixels is None
            assert "truncated" in item.problem
            continue
        pixels, geometry = resizing(decode_bgr(folder / f"{item.position}.png"))
        assert item.geometry == geometry
        assert item.pixels.dtype == pixels.numpy().dtype
        np.testing.assert_array_equal(item.pixels, pixels.numpy())


def test_arrays_that_are_larger_than_expected_arrive_too(folder, images):
    class Doubling(Resizing):
        def __call__(self, image):
            pixels, geometry = super().__call__(image)
            return pixels.repeat(1, 2, 2), geometry

    resizing = Doubling("torch", 48, 80)
    for item in load(folder, images, [0, 1, 2], resizing, workers=1):
        expected, _ = resizing(decode_bgr(folder / f"{item.position}.png"))
        assert expected.numel() > 48 * 80 * 3
        np.testing.assert_array_equal(item.pixels, expected.numpy())


def test_arrays_travel_by_pipe_where_processes_do_not_inherit_memory(folder, images, monkeypatch):
    monkeypatch.setattr("multiprocessing.get_start_method", lambda: "spawn")
    resizing = Resizing("caffe", 48, 80)
    found = list(load(folder, images, [4, 2], resizing, workers=1))
    here = list(load(folder, images, [4, 2], resizing, workers=0))
    for one, other in zip(found, here, strict=True):
        np.testing.assert_array_equal(one.pixels, other.pixels)
        assert replace(one, pixels=None, seconds=0) == replace(other, pixels=None, seconds=0)
