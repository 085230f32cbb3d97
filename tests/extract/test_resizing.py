import cv2
import numpy as np
import pytest
from detectron2.data.transforms import ResizeShortestEdge
from hypothesis import given
from hypothesis import strategies as st

from extract.resizing import SMALLEST_SIDE, Resizing


@given(height=st.integers(100, 3000), width=st.integers(100, 3000))
def test_shapes_are_those_of_detectron2(height, width):
    shape = Resizing("pillow", 600, 1000).shape(height, width)
    assert shape == ResizeShortestEdge.get_output_shape(height, width, 600, 1000)


@pytest.mark.parametrize(("size", "expected"), [((480, 640), (600, 800)), ((300, 900), (333, 1000))])
def test_shapes_of_known_sizes(size, expected):
    assert Resizing("torch", 600, 1000).shape(*size) == expected


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1)])
def test_no_side_vanishes(size):
    assert min(Resizing("torch", 600, 1000).shape(*size)) >= SMALLEST_SIDE


def smooth(height, width):
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 200 / width, y * 200 / height, 255 - x * 100 / width], axis=2).round().astype(np.uint8)


def test_torch_interpolates_floats_without_antialiasing():
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    resized = Resizing("torch", 35, 1000)(image)
    reference = cv2.resize(image.astype(np.float32), (49, 35), interpolation=cv2.INTER_LINEAR)
    assert resized.shape == (3, 35, 49)
    assert np.abs(resized.permute(1, 2, 0).numpy() - reference).max() < 0.01


def test_pillow_keeps_bytes_and_averages_when_shrinking():
    image = smooth(400, 600)
    resized = Resizing("pillow", 40, 1000)(image)
    blocks = image.reshape(40, 10, 60, 10, 3).mean(axis=(1, 3))
    assert resized.dtype.is_floating_point is False
    inner = resized.permute(1, 2, 0).numpy()[1:-1, 1:-1]
    assert np.abs(inner - blocks[1:-1, 1:-1]).max() < 2


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="expected pillow or torch"):
        Resizing("nearest", 600, 1000)
