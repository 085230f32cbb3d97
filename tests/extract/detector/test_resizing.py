import cv2
import numpy as np
import pytest
import torch
from detectron2.data.transforms import ResizeShortestEdge
from hypothesis import given
from hypothesis import strategies as st

from extract.detector.resizing import SMALLEST_SIDE, Resizing


@given(height=st.integers(100, 3000), width=st.integers(100, 3000))
def test_shapes_are_those_of_detectron2(height, width):
    shape = Resizing("pillow", 600, 1000).geometry(height, width).resized
    assert shape == ResizeShortestEdge.get_output_shape(height, width, 600, 1000)


@pytest.mark.parametrize(("size", "expected"), [((480, 640), (600, 800)), ((300, 900), (333, 1000))])
def test_shapes_of_known_sizes(size, expected):
    assert Resizing("torch", 600, 1000).geometry(*size).resized == expected


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1)])
def test_no_side_vanishes(size):
    for method in ("torch", "caffe"):
        assert min(Resizing(method, 600, 1000).geometry(*size).resized) >= SMALLEST_SIDE


def smooth(height, width):
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 200 / width, y * 200 / height, 255 - x * 100 / width], axis=2).round().astype(np.uint8)


def test_torch_interpolates_floats_without_antialiasing():
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    resized, _ = Resizing("torch", 35, 1000)(image)
    reference = cv2.resize(image.astype(np.float32), (49, 35), interpolation=cv2.INTER_LINEAR)
    assert resized.shape == (3, 35, 49)
    assert np.abs(resized.permute(1, 2, 0).numpy() - reference).max() < 0.01


def test_pillow_keeps_bytes_and_averages_when_shrinking():
    image = smooth(400, 600)
    resized, _ = Resizing("pillow", 40, 1000)(image)
    blocks = image.reshape(40, 10, 60, 10, 3).mean(axis=(1, 3))
    assert resized.dtype.is_floating_point is False
    inner = resized.permute(1, 2, 0).numpy()[1:-1, 1:-1]
    assert np.abs(inner - blocks[1:-1, 1:-1]).max() < 2


MEAN = (102.9801, 115.9465, 122.7717)


def bilinear_by_factor(image, factor, height, width):
    """OpenCV's rule with an explicit factor, in float64: sample at (i + 0.5) / factor - 0.5, edges repeated."""
    values = image.astype(np.float64) - np.array(MEAN)

    def axis(count, source):
        at = (np.arange(count) + 0.5) / factor - 0.5
        low = np.floor(at).astype(int)
        weight = at - low
        return np.clip(low, 0, source - 1), np.clip(low + 1, 0, source - 1), weight

    y0, y1, wy = axis(height, image.shape[0])
    x0, x1, wx = axis(width, image.shape[1])
    rows = values[y0] * (1 - wy)[:, None, None] + values[y1] * wy[:, None, None]
    return rows[:, x0] * (1 - wx)[None, :, None] + rows[:, x1] * wx[None, :, None]


@pytest.mark.parametrize("size", [(50, 70), (71, 50), (53, 157), (400, 301)])
def test_caffe_samples_by_the_factor_and_rounds_to_even(size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    resized, geometry = Resizing("caffe", 75, 160, MEAN)(image)
    factor = 75 / min(size)
    if np.rint(factor * max(size)) > 160:
        factor = 160 / max(size)
    expected = (int(np.rint(size[0] * factor)), int(np.rint(size[1] * factor)))
    assert geometry.resized == expected == tuple(resized.shape[1:])
    assert geometry.scale == (factor, factor)
    reference = bilinear_by_factor(image, factor, *expected)
    assert np.abs(resized.permute(1, 2, 0).numpy() - reference).max() < 0.02  # of 255


def test_half_pixels_round_as_each_program_rounds():
    assert Resizing("caffe", 75, 1000).geometry(50, 71).resized == (75, 106)  # 106.5 to even
    assert Resizing("torch", 75, 1000).geometry(50, 71).resized == (75, 107)


@given(height=st.integers(20, 900), width=st.integers(20, 900), method=st.sampled_from(["caffe", "torch"]))
def test_boxes_go_to_the_resized_picture_and_back(height, width, method):
    geometry = Resizing(method, 600, 1000).geometry(height, width)
    box = torch.tensor([[0.0, 0.0, width, height]])
    there = geometry.to_resized(box)
    assert (there[0, 2:] - torch.tensor(geometry.resized[::-1])).abs().max() <= 0.51
    torch.testing.assert_close(geometry.to_original(there), box, atol=1e-3, rtol=0)


@pytest.mark.parametrize("method", ["caffe", "torch", "pillow"])
def test_the_number_of_threads_does_not_matter(method):
    """Loader processes have one, a run without them has all."""
    image = np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8)
    resizing, before = Resizing(method, 180, 300, (1.0, 2.0, 3.0)), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(resizing(image)[0])
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="expected caffe, torch, pillow"):
        Resizing("nearest", 600, 1000)
