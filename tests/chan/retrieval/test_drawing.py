from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageColor, ImageDraw

from chan.retrieval import drawing as pictures
from chan.retrieval.explanation import Answer, Explanation
from chan.retrieval.words import WordMatch
from data_tools.errors import InputError
from data_tools.images.decoding import read_image


def explanation(file: Path, correct: bool = True, words: int = 1) -> Explanation:
    box = np.array([10, 10, 50, 60], dtype=np.float32)
    answer = Answer(file, 1.5, correct, (WordMatch("red", 0.5, 2, box), WordMatch("square", 0.4, 2, box)))
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
        assert in_images > 30
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


def answer(file: Path | None, *picked: tuple[str, int, tuple[float, ...]]) -> Answer:
    matches = tuple(WordMatch(word, 0.5, region, np.array(box, np.float32)) for word, region, box in picked)
    return Answer(file, 1.0, False, matches)


def test_words_of_one_region_share_a_frame_and_a_label(file: Path) -> None:
    words = ["red", "square", "dog"]
    one = answer(file, ("red", 3, (10, 10, 90, 70)), ("square", 3, (10, 10, 90, 70)), ("dog", 5, (20, 20, 60, 60)))
    picture = pictures.draw([Explanation(words, [0, 1, 2], [one])])
    top = pictures.LINE + pictures.TITLE_SIZE + 30
    first, second, third = (count(picture, colour, top) for colour in pictures.COLOURS[:3])
    frame = 2 * (80 + 60) * 3.5 * 2  # two lines wide, 3.5 times as large in the cell
    assert first > 0.9 * frame
    assert 30 < second < 0.3 * frame  # the word in the label, and no frame
    assert third > 0.9 * frame / 2


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.text("mW é", min_size=1, max_size=30), st.integers(0, 3)), min_size=1, max_size=12))
def test_labels_stay_in_the_cell(picked: list[tuple[str, int]]) -> None:
    boxes = [(0.0, 0.0, 2.0, 2.0), (0, 0, 380, 280), (370, 270, 380, 280), (-30.0, 100, 500, 101)]
    pen = ImageDraw.Draw(Image.new("RGB", (pictures.CELL_WIDTH, pictures.CELL_HEIGHT)))
    words = [(word[:30], "#000000") for word, _ in picked]
    for _, number in picked:
        x1, y1, x2, y2 = pictures._label(pen, boxes[number], words, [])
        assert x1 >= 0
        assert y1 >= 0
        assert y2 < pictures.CELL_HEIGHT or len(words) > 8
        assert x2 < pictures.CELL_WIDTH or max(len(word) for word, _ in words) > 20


@pytest.mark.parametrize("rank", [2, 4, 999, 123_456_789])
def test_titles_fit_their_cell(file: Path, rank: int) -> None:
    row = Explanation(["dog"], [0], [answer(file, ("dog", 0, (1, 1, 9, 9)))] * 2, rank)
    pixels = np.asarray(pictures.draw([row]))
    top = pictures.MARGIN + pictures.LINE
    gap = pixels[top : top + pictures.TITLE_SIZE, pictures.MARGIN + pictures.CELL_WIDTH :][:, : pictures.GAP]
    assert (gap == 255).all()


def test_more_images_than_columns_take_more_rows(file: Path) -> None:
    one, two = (
        pictures.draw([Explanation(["dog"], [0], number * [answer(file, ("dog", 0, (1, 1, 9, 9)))])])
        for number in (3, 4)
    )
    assert two.height == one.height + pictures.ROW


def test_an_unknown_file_is_an_empty_cell() -> None:
    picture = pictures.draw([Explanation(["dog"], [0], [answer(None, ("dog", 0, (1, 1, 9, 9)))])])
    assert count(picture, "#f1f3f5") > 0.9 * pictures.CELL_WIDTH * pictures.CELL_HEIGHT
