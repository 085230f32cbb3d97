import numpy as np
import pytest

from data_tools.images.drawing import BLACK, COLOURS, WHITE, draw_regions


def picture(height, width, value=128):
    return np.full((height, width, 3), value, np.uint8)


def is_colour(pixels, colour):
    return (np.asarray(pixels) == colour).all(axis=-1)


def test_a_frame_lies_on_the_edges_of_its_box_and_nowhere_else():
    image = picture(700, 800)
    drawn = np.asarray(draw_regions(image, np.array([[100, 200, 300, 400]]), [""]))
    assert drawn.shape == image.shape
    frame = is_colour(drawn, COLOURS[0])
    rows, columns = np.nonzero(frame)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (200, 400, 100, 300)
    assert frame[200, 100:301].all()
    assert frame[200:401, 300].all()
    assert not frame[210:390, 110:290].any()
    np.testing.assert_array_equal(drawn[~frame], image[~frame])


def test_a_plate_carries_dark_text_on_light_and_light_text_on_dark():
    boxes = np.array([[50, 100, 200, 200], [300, 100, 500, 200], [50, 300, 200, 400]])
    drawn = np.asarray(draw_regions(picture(600, 800), boxes, ["one", "", "three"]))
    assert is_colour(drawn[80:100, 50:200], COLOURS[0]).sum() > 100  # above its box
    assert is_colour(drawn[70:100, 50:200], WHITE).any()  # on red
    assert not is_colour(drawn[:100, 300:500], COLOURS[1]).any()
    assert is_colour(drawn[280:300, 50:200], BLACK).any()  # on yellow


def test_plates_of_one_box_after_the_other_do_not_cover_each_other():
    boxes = np.array([[100, 300, 500, 500]] * 3)
    apart = np.asarray(draw_regions(picture(640, 640), boxes, ["a cat", "a dog", "a bird"]))
    for colour in COLOURS[:3]:
        assert is_colour(apart, colour).sum() > 300


@pytest.mark.parametrize("size", [(1, 1), (3, 3000), (2000, 2), (40, 30), (4000, 6000)])
def test_tiny_and_huge_pictures_come_in_a_size_that_can_be_read(size):
    height, width = size
    boxes = np.array([[0, 0, width, height], [-9.0, -9, width * 2, height / 2]])
    drawn = draw_regions(picture(height, width), boxes, ["red kite 0.91", "grey wall 0.5"])
    assert 640 <= max(drawn.size) <= 3072
    assert min(drawn.size) >= 12
    assert is_colour(drawn, COLOURS[0]).any()


def test_enlarged_boxes_follow_their_pixels():
    image = picture(64, 64, 0)
    image[16:32, 16:32] = 250
    drawn = np.asarray(draw_regions(image, np.array([[16, 16, 32, 32]]), [""]))
    assert drawn.shape == (640, 640, 3)
    assert is_colour(drawn[160, 160:320], COLOURS[0]).all()
    assert (drawn[165:315, 165:315] == 250).all()


def test_many_regions_and_none():
    rng = np.random.default_rng(0)
    boxes = rng.uniform(0, 500, (100, 4))
    assert draw_regions(picture(480, 640), boxes, ["long label of a thing 0.99"] * 100).size == (640, 480)
    nothing = draw_regions(picture(480, 640), np.empty((0, 4)), [])
    np.testing.assert_array_equal(np.asarray(nothing), picture(480, 640))


@pytest.mark.parametrize(
    ("image", "boxes", "labels", "message"),
    [
        (picture(9, 9)[..., 0], np.zeros((1, 4)), ["a"], "expected an RGB picture"),
        (picture(9, 9).astype(float), np.zeros((1, 4)), ["a"], "expected an RGB picture"),
        (picture(9, 9), np.zeros((2, 4)), ["a"], r"expected \(1, 4\) boxes for 1 labels"),
        (picture(9, 9), np.full((1, 4), np.nan), ["a"], "found NaN or Inf"),
    ],
)
def test_what_cannot_be_drawn_is_refused(image, boxes, labels, message):
    with pytest.raises(ValueError, match=message):
        draw_regions(image, boxes, labels)
