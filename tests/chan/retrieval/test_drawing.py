from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from chan.retrieval import drawing as pictures
from chan.retrieval.explanation import Answer, Explanation
from data_tools.errors import InputError


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
    photograph = Image.new("RGB", (100, 50), "red")
    exif = photograph.getexif()
    exif[0x0112] = 6  # the camera was turned
    photograph.save(tmp_path / "turned.jpg", exif=exif)
    assert pictures._open(tmp_path / "turned.jpg").size == (50, 100)


def test_a_missing_image_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.png"):
        pictures.draw([explanation(tmp_path / "gone.png")])
