"""Draws explanations: one row per caption with its best images and the regions that its words picked.

Lengths are in pixels.
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from chan.retrieval.explanation import Answer, Explanation
from data_tools.files import replacing
from data_tools.images.decoding import read_image

CELL_WIDTH, CELL_HEIGHT, GAP, MARGIN = 380, 280, 24, 28
CAPTION_SIZE, TITLE_SIZE, LINE = 24, 18, 34
INK, PALE, GREEN, PAPER = "#202428", "#8a9097", "#1a8f3c", "#ffffff"
COLOURS = (
    *("#d62728", "#1f77b4", "#e07b00", "#8e44ad", "#008b8b", "#e0218a"),
    *("#6d4c2f", "#5c6bc0", "#7a8b00", "#00a3e0", "#7f1d1d", "#b8860b"),
)
WIDTH = 2 * MARGIN + 3 * CELL_WIDTH + 2 * GAP

Font = ImageFont.FreeTypeFont
Place = tuple[int, int]


def draw(rows: Sequence[Explanation]) -> Image.Image:
    """Draw explanations below one another.

    Args:
        rows: any number of captions with at most three images each.

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
    top = MARGIN // 2 + LINE * len(lines)
    strip = Image.new("RGB", (WIDTH, top + TITLE_SIZE + 18 + CELL_HEIGHT + MARGIN), PAPER)
    pen = ImageDraw.Draw(strip)
    for number, line in enumerate(lines):
        for word, left in line:
            colour = colours.get(word, PALE)
            pen.text((MARGIN + left, MARGIN // 2 + LINE * number), row.words[word], fill=colour, font=font)
    for place, answer in enumerate(row.answers):
        left = MARGIN + place * (CELL_WIDTH + GAP)
        _title(pen, (left, top + 4), place + 1, answer, row.rank)
        cell = _cell(answer, [colours[word] for word in row.content])
        strip.paste(cell, (left, top + TITLE_SIZE + 14))
    pen.line((MARGIN, strip.height - 2, WIDTH - MARGIN, strip.height - 2), fill="#d9dce0", width=2)
    return strip


def _wrap(row: Explanation, font: Font, width: int) -> list[list[tuple[int, int]]]:
    """Lines of (position of a word, its left edge); special tokens are left out."""
    lines: list[list[tuple[int, int]]] = [[]]
    left, space = 0, round(font.getlength(" "))
    for position, word in enumerate(row.words):
        if word in ("<start>", "<end>"):
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


def _title(pen: ImageDraw.ImageDraw, place: Place, rank: int, answer: Answer, right: int) -> None:
    """Rank and score above an image, with a check mark for the correct one."""
    font = _font(TITLE_SIZE, bold=answer.correct)
    text = f"{rank}   score {answer.score:.3f}"
    if answer.correct:
        text += "   ✓ correct"
    elif rank == 1 and right > 3:
        text += f"   (the correct image is at rank {right})"
    pen.text(place, text, fill=GREEN if answer.correct else INK, font=font)


def _cell(answer: Answer, colours: Sequence[str]) -> Image.Image:
    """An image in its cell with the picked boxes, and with a green frame if it is the correct one."""
    image = Image.fromarray(read_image(answer.file))  # the pixels that the detector saw
    scale = min(CELL_WIDTH / image.width, CELL_HEIGHT / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    cell = Image.new("RGB", (CELL_WIDTH, CELL_HEIGHT), "#f1f3f5")
    corner = ((CELL_WIDTH - size[0]) // 2, (CELL_HEIGHT - size[1]) // 2)
    cell.paste(image.resize(size, Image.Resampling.LANCZOS), corner)
    pen = ImageDraw.Draw(cell)
    for box, colour, room in zip(answer.boxes * scale, colours, _clearances(answer.boxes), strict=True):
        x1, y1, x2, y2 = (float(value) + corner[axis % 2] for axis, value in enumerate(box))
        x1, y1, x2, y2 = x1 - room, y1 - room, x2 + room, y2 + room
        pen.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline="white", width=4)
        pen.rectangle((x1, y1, x2, y2), outline=colour, width=2)
    if answer.correct:
        pen.rectangle((0, 0, CELL_WIDTH - 1, CELL_HEIGHT - 1), outline=GREEN, width=6)
    return cell


def _clearances(boxes: np.ndarray) -> list[int]:
    """How far outside its box each frame is drawn, so that frames of words with equal boxes do not coincide."""
    seen: dict[tuple[float, ...], int] = {}
    clearances = []
    for box in boxes.tolist():
        clearances.append(4 * seen.setdefault(tuple(box), 0))
        seen[tuple(box)] += 1
    return clearances


def _font(size: int, bold: bool) -> Font:
    """DejaVu Sans from Matplotlib's files; it has the check mark."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)
