"""Draws explanations: one row per caption with its best images and the regions that its words picked.

A region has one frame, in the colour of the first word that picked it, and a label that lists its words.
Lengths are in pixels.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from chan.retrieval.explanation import Answer, Explanation
from chan.retrieval.words import SPECIAL
from data_tools.files import replacing
from data_tools.images.decoding import read_image

CELL_WIDTH, CELL_HEIGHT, GAP, MARGIN = 380, 280, 24, 28
CAPTION_SIZE, TITLE_SIZE, LABEL_SIZE, LINE = 24, 18, 14, 34
COLUMNS = 3
INK, PALE, GREEN, PAPER = "#202428", "#8a9097", "#1a8f3c", "#ffffff"
COLOURS = (
    *("#d62728", "#1f77b4", "#e07b00", "#8e44ad", "#008b8b", "#e0218a"),
    *("#6d4c2f", "#5c6bc0", "#7a8b00", "#00a3e0", "#7f1d1d", "#b8860b"),
)
WIDTH = 2 * MARGIN + COLUMNS * CELL_WIDTH + (COLUMNS - 1) * GAP
ROW = TITLE_SIZE + 18 + CELL_HEIGHT + GAP // 2  # a title and the image below it

Font = ImageFont.FreeTypeFont
Place = tuple[float, float]
Rectangle = tuple[float, float, float, float]
Label = list[tuple[str, str]]  # words, each with its colour


def draw(rows: Sequence[Explanation]) -> Image.Image:
    """Draw explanations below one another.

    Args:
        rows: any number of captions, each with any number of images.

    Returns:
        An RGB picture as wide as three images.

    Raises:
        InputError: an image file is missing or cannot be decoded.
    """
    strips = [_strip(row) for row in rows]
    picture = Image.new("RGB", (WIDTH, sum(strip.height for strip in strips) + MARGIN), PAPER)
    top = MARGIN // 2
    for strip in strips:
        picture.paste(strip, (0, top))
        top += strip.height
    return picture


def save(picture: Image.Image, path: Path) -> None:
    """Write a PNG file, complete or not at all; `InputError` if it cannot be written."""
    with replacing(path) as temporary:
        picture.save(temporary, format="PNG")


def _strip(row: Explanation) -> Image.Image:
    """The row of one caption."""
    colours = {word: COLOURS[number % len(COLOURS)] for number, word in enumerate(row.content)}
    font = _font(CAPTION_SIZE, bold=True)
    lines = _wrap(row, font, WIDTH - 2 * MARGIN)
    first = MARGIN // 2 + (LINE if row.heading else 0)
    top = first + LINE * len(lines)
    strip = Image.new("RGB", (WIDTH, top + -(-len(row.answers) // COLUMNS) * ROW + MARGIN // 2), PAPER)
    pen = ImageDraw.Draw(strip)
    pen.text((MARGIN, MARGIN // 2), row.heading, fill=INK, font=_font(TITLE_SIZE, bold=False))
    for number, line in enumerate(lines):
        for word, left in line:
            colour = colours.get(word, PALE)
            pen.text((MARGIN + left, first + LINE * number), row.words[word], fill=colour, font=font)
    for number, answer in enumerate(row.answers):
        corner = (MARGIN + number % COLUMNS * (CELL_WIDTH + GAP), top + number // COLUMNS * ROW)
        _title(pen, (corner[0], corner[1] + 4), number + 1, answer, row.rank)
        cell = _cell(answer, [colours[word] for word in row.content])
        strip.paste(cell, (corner[0], corner[1] + TITLE_SIZE + 14))
    pen.line((MARGIN, strip.height - 2, WIDTH - MARGIN, strip.height - 2), fill="#d9dce0", width=2)
    return strip


def _wrap(row: Explanation, font: Font, width: int) -> list[list[tuple[int, int]]]:
    """Lines of (position of a word, its left edge); special tokens are left out."""
    lines: list[list[tuple[int, int]]] = [[]]
    left, space = 0, round(font.getlength(" "))
    for position, word in enumerate(row.words):
        if word in SPECIAL:
            continue
        length = round(font.getlength(word))
        joined = word in {".", ",", ";", ":", "!", "?", "'s", "n't", ")"}
        if left and not joined:
            left += space
        if left + length > width and lines[-1]:
            lines.append([])
            left = 0
        lines[-1].append((position, left))
        left += length
    return lines


def _title(pen: ImageDraw.ImageDraw, place: Place, number: int, answer: Answer, rank: int | None) -> None:
    """Rank and score above an image, with a check mark for the correct one; the first text that fits the cell."""
    font = _font(TITLE_SIZE, bold=answer.correct)
    text = f"{number}   score {answer.score:.3f}"
    longer = [f"{rank}   score {answer.score:.3f}   ✓ correct"] if answer.correct else []
    if not answer.correct and number == 1 and rank is not None:
        longer = [f"{text}   (correct image: rank {rank:,})", f"{text}   (correct: {rank:,})"]
    fitting = (other for other in (*longer, text) if font.getlength(other) <= CELL_WIDTH)
    pen.text(place, next(fitting, text), fill=GREEN if answer.correct else INK, font=font)


def _cell(answer: Answer, colours: Sequence[str]) -> Image.Image:
    """An image in its cell with the picked regions, and with a green frame if it is the correct one."""
    cell = Image.new("RGB", (CELL_WIDTH, CELL_HEIGHT), "#f1f3f5")
    pen = ImageDraw.Draw(cell)
    if answer.file is None:
        pen.text((12, 12), "the image file is not known", fill=PALE, font=_font(LABEL_SIZE, bold=False))
        return cell
    image = Image.fromarray(read_image(answer.file))  # the pixels that the detector saw
    scale = min(CELL_WIDTH / image.width, CELL_HEIGHT / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    corner = ((CELL_WIDTH - size[0]) // 2, (CELL_HEIGHT - size[1]) // 2)
    cell.paste(image.resize(size, Image.Resampling.LANCZOS), corner)
    labels: list[tuple[Rectangle, Label]] = []
    for box, words in _regions(answer, colours):
        x1, y1, x2, y2 = (value * scale + corner[axis % 2] for axis, value in enumerate(box))
        pen.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline="white", width=4)
        pen.rectangle((x1, y1, x2, y2), outline=words[0][1], width=2)
        labels.append(((x1, y1, x2, y2), words))
    if answer.correct:
        pen.rectangle((0, 0, CELL_WIDTH - 1, CELL_HEIGHT - 1), outline=GREEN, width=6)
    taken: list[Rectangle] = []
    for frame, words in labels:  # after all frames, so that none crosses a label
        taken.append(_label(pen, frame, words, taken))
    return cell


def _regions(answer: Answer, colours: Sequence[str]) -> Iterator[tuple[list[float], Label]]:
    """The box of each region that was picked, the largest first, and the words that picked it."""
    picked = sorted(zip(answer.matches, colours, strict=True), key=lambda pair: pair[0].region)
    found = []
    for _, group in groupby(picked, key=lambda pair: pair[0].region):
        pairs = list(group)
        if pairs[0][0].box is not None:
            found.append((pairs[0][0].box.tolist(), [(match.word, colour) for match, colour in pairs]))
    yield from sorted(found, key=lambda item: -(item[0][2] - item[0][0]) * (item[0][3] - item[0][1]))


def _label(pen: ImageDraw.ImageDraw, frame: Rectangle, words: Label, taken: Sequence[Rectangle]) -> Rectangle:
    """Write the words of a region beside its frame, inside the cell and where no other label is; its place."""
    font = _font(LABEL_SIZE, bold=True)
    space = font.getlength(" ")
    lines: list[Label] = [[]]
    for word, colour in words:
        line = [*lines[-1], (word, colour)]
        if lines[-1] and sum(font.getlength(text) + space for text, _ in line) > CELL_WIDTH - 16:
            lines.append([(word, colour)])
        else:
            lines[-1] = line
    width = max(sum(font.getlength(text) + space for text, _ in line) for line in lines) + 4
    height = (LABEL_SIZE + 4) * len(lines) + 2
    x1, y1, x2, y2 = frame
    tops = (y1 - height, y1, y2, y2 - height)
    places = [_inside(left, top, width, height) for top in tops for left in (x1, x2 - width)]
    place = min(places, key=lambda candidate: sum(_overlap(candidate, other) for other in taken))
    pen.rectangle(place, fill="white", outline=words[0][1], width=1)
    for number, line in enumerate(lines):
        left = place[0] + 4
        for text, colour in line:
            pen.text((left, place[1] + 1 + number * (LABEL_SIZE + 4)), text, fill=colour, font=font)
            left += font.getlength(text) + space
    return place


def _inside(left: float, top: float, width: float, height: float) -> Rectangle:
    """The rectangle, moved into the cell."""
    left = max(0.0, min(left, CELL_WIDTH - 1 - width))
    top = max(0.0, min(top, CELL_HEIGHT - 1 - height))
    return left, top, left + width, top + height


def _overlap(one: Rectangle, other: Rectangle) -> float:
    """The area that two rectangles share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)


def _font(size: int, bold: bool) -> Font:
    """DejaVu Sans from Matplotlib's files; it has the check mark."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)
