from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from chan.retrieval import drawing as pictures
from chan.retrieval.explanation import Answer, Explanation
from data_tools.errors import InputError
from data_tools.images.decoding import read_image


def explanation(file: Path, correct: bool = True, words: int = 1) -> Explanation:
    boxes = np.array([[10, 10, 50, 60]] * 2, dtype=np.float32)
    answer = Answer(file, 1.5, correct, boxes)
    return Explanation(["<start>", *["a"] * words, "red", "square", "<end>"], [words + 1, words + 2], [answer], 1)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    Image.new("RGB", (100, 80), "white").save(tmp_path / "image.png")
    return tmp_path / "image.png"


def count(picture: Image.Image, colour: str, top: int = 0) -> int:
    return int((np.asarray(picture)[top:] == ImageColor.getrgb(colour)).all(-1).sum())


def test_words_and_boxes_share_their_colours(file: Path) -> None:
    picture = pictures.draw([explanation(file)])
    images_from = pictures.LINE + pictures.TITLE_SIZE + 30
    for colour in pictures.COLOURS[:2]:
        in_images = count(picture, colour, images_from)
        assert in_images > 200
        assert count(picture, colour) > in_images + 50
    assert count(picture, pictures.COLOURS[2]) == 0


def test_only_the_right_image_is_framed(file: Path) -> None:
    right, wrong = (count(pictures.draw([explanation(file, ok)]), pictures.GREEN) for ok in (True, False))
    assert wrong == 0
    assert right > 5 * (pictures.CELL_WIDTH + pictures.CELL_HEIGHT)


def test_long_captions_take_more_lines(file: Path) -> None:
    one, more = (pictures.draw([explanation(file, words=words)]) for words in (1, 120))
    assert more.width == one.width
    assert more.height >= one.height + 2 * pictures.LINE


def test_rotated_photographs_are_drawn_upright(tmp_path: Path) -> None:
    photograph = Image.new("RGB", (100, 50), "#ff0000")
    exif = photograph.getexif()
    exif[0x0112] = 6  # the camera was turned
    photograph.save(tmp_path / "turned.png", exif=exif)
    drawn = np.asarray(pictures.draw([explanation(tmp_path / "turned.png", correct=False)]))
    rows, columns = np.nonzero((drawn == (255, 0, 0)).all(-1))
    assert (int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1) == (pictures.CELL_HEIGHT, pictures.CELL_HEIGHT // 2)


def test_sixteen_bits_are_drawn_with_their_upper_byte(tmp_path: Path) -> None:
    values = np.full((80, 100), 100 * 256 + 77, dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    drawn = pictures.draw([explanation(tmp_path / "deep.png", correct=False)])
    np.testing.assert_array_equal(read_image(tmp_path / "deep.png"), np.full((80, 100, 3), 100, np.uint8))
    assert count(drawn, "rgb(100, 100, 100)") > 0.9 * 350 * 280  # the image's part of its cell


def test_transparent_pixels_are_drawn_as_the_detector_saw_them(tmp_path: Path) -> None:
    pixels = np.zeros((80, 100, 4), dtype=np.uint8)
    pixels[:, :50] = (200, 0, 0, 0)  # a hidden red
    pixels[:, 50:] = (0, 0, 0, 51)  # black over white: 0.8 * 255
    Image.fromarray(pixels).save(tmp_path / "clear.png")
    seen = read_image(tmp_path / "clear.png")
    assert (seen[:, :50] == 255).all()
    assert (seen[:, 50:] == 204).all()
    drawn = pictures.draw([explanation(tmp_path / "clear.png", correct=False)])
    assert count(drawn, "rgb(200, 0, 0)") == 0
    assert count(drawn, "rgb(204, 204, 204)") > 0.9 * 175 * 280


def test_a_missing_image_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.png"):
        pictures.draw([explanation(tmp_path / "gone.png")])
