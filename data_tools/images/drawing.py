"""Drawing regions on a picture: a frame round each and a plate with its label."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SMALLEST_SIDE = 640  # pixels of the longer side: smaller pictures are enlarged, or no label would be read
LARGEST_SIDE = 3072  # larger pictures are reduced, or no screen would show them
BACKGROUND = (96, 96, 96)
BLACK, WHITE = (0, 0, 0), (255, 255, 255)

# Frames take these in turn: hues far apart, none of them close to grey.
COLOURS = (
    (230, 25, 75),
    (60, 180, 75),
    (255, 225, 25),
    (0, 130, 200),
    (245, 130, 48),
    (145, 30, 180),
    (70, 240, 240),
    (240, 50, 230),
    (210, 245, 60),
    (170, 110, 40),
)

Box = tuple[float, float, float, float]
Colour = tuple[int, int, int]


def draw_regions(
    image: np.ndarray, boxes: np.ndarray, labels: Sequence[str], colours: Sequence[Colour] = COLOURS
) -> Image.Image:
    """A copy of `image` with each box framed and labelled.

    The copy is enlarged or reduced to a longer side of 640 to 3072 pixels where the picture is smaller or
    larger, and never narrower or lower than a label. Boxes are cut to the picture. The first boxes are drawn
    last, on top, since the first regions of a store are often its most confident.

    Args:
        image: (height, width, 3) uint8, RGB.
        boxes: (K, 4) x1 y1 x2 y2 in pixels of `image`.
        labels: K lines of text; an empty one gets no plate.
        colours: of the frames, which take them in turn.

    Raises:
        ValueError: shapes or types differ from these, or a box is not finite.
    """
    boxes = np.asarray(boxes, dtype=np.float64)
    _check(image, boxes, labels)
    height, width = image.shape[:2]
    factor = min(max(1.0, SMALLEST_SIDE / max(height, width)), LARGEST_SIDE / max(height, width))
    scaled = max(1, round(width * factor)), max(1, round(height * factor))
    picture = Image.fromarray(image)
    if scaled != picture.size:
        # Enlarged pixels stay visible as squares: what the detector saw is not made to look sharper.
        picture = picture.resize(scaled, Image.Resampling.BOX if factor < 1 else Image.Resampling.NEAREST)
    stroke = max(2, max(scaled) // 320)
    font = ImageFont.load_default(size=max(12, max(scaled) // 64))
    plates = [_plate_size(font, label, stroke) for label in labels]
    canvas = Image.new("RGB", _canvas_size(scaled, plates), BACKGROUND)
    canvas.paste(picture)
    _draw(canvas, _cut(boxes, scaled, (width, height)), labels, plates, font, stroke, colours)
    return canvas


def _check(image: np.ndarray, boxes: np.ndarray, labels: Sequence[str]) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ValueError(f"expected an RGB picture of bytes, found {image.dtype} {image.shape}")
    if boxes.shape != (len(labels), 4):
        raise ValueError(f"expected ({len(labels)}, 4) boxes for {len(labels)} labels, found {boxes.shape}")
    if not np.isfinite(boxes).all():
        raise ValueError("expected finite boxes, found NaN or Inf")


def _canvas_size(picture: tuple[int, int], plates: list[tuple[int, int]]) -> tuple[int, int]:
    """The picture's size, or as much more as the largest plate needs."""
    return (
        max([picture[0], *(plate[0] for plate in plates)]),
        max([picture[1], *(plate[1] for plate in plates)]),
    )


def _cut(boxes: np.ndarray, scaled: tuple[int, int], original: tuple[int, int]) -> list[Box]:
    """The boxes in the scaled picture's pixels, cut to it and with corners in order."""
    x = np.clip(boxes[:, 0::2] * (scaled[0] / original[0]), 0, scaled[0] - 1)
    y = np.clip(boxes[:, 1::2] * (scaled[1] / original[1]), 0, scaled[1] - 1)
    x.sort(axis=1)
    y.sort(axis=1)
    return list(zip(x[:, 0].tolist(), y[:, 0].tolist(), x[:, 1].tolist(), y[:, 1].tolist(), strict=True))


def _plate_size(font: ImageFont.FreeTypeFont | ImageFont.ImageFont, text: str, margin: int) -> tuple[int, int]:
    """Width and height of the plate of a label; (0, 0) without one."""
    if not text:
        return 0, 0
    _, _, right, bottom = font.getbbox(text)
    return int(right) + 2 * margin, int(bottom) + 2 * margin


def _draw(
    canvas: Image.Image,
    boxes: list[Box],
    labels: Sequence[str],
    plates: list[tuple[int, int]],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    stroke: int,
    colours: Sequence[Colour],
) -> None:
    """Frames first, plates above all frames, so that no frame crosses a text."""
    pen = ImageDraw.Draw(canvas)
    order = range(len(boxes))
    for index in reversed(order):
        pen.rectangle(boxes[index], outline=colours[index % len(colours)], width=stroke)
    placed: list[Box] = []
    spots = [_place(canvas.size, boxes[index], plates[index], placed) for index in order]
    for index in reversed(order):
        if labels[index]:
            colour = colours[index % len(colours)]
            left, top, right, bottom = spots[index]
            pen.rectangle((left, top, right - 1, bottom - 1), fill=colour)
            pen.text((left + stroke, top + stroke), labels[index], fill=_ink(colour), font=font)


def _place(canvas: tuple[int, int], box: Box, plate: tuple[int, int], placed: list[Box]) -> Box:
    """Where a plate goes: at a corner of its box, in the picture, over no plate placed before if possible."""
    x1, y1, x2, y2 = box
    width, height = plate
    corners = [(x1, y1 - height), (x1, y1), (x2 - width, y1), (x1, y2), (x1, y2 - height), (x2 - width, y2)]
    spots = []
    for left, top in corners:
        left = min(max(left, 0), canvas[0] - width)
        top = min(max(top, 0), canvas[1] - height)
        spots.append((round(left), round(top), round(left) + width, round(top) + height))
    free = (spot for spot in spots if not any(_overlap(spot, other) for other in placed))
    chosen = next(free, spots[0])
    placed.append(chosen)
    return chosen


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _ink(colour: Colour) -> Colour:
    """Black on light plates, white on dark ones: by the luma of ITU-R BT.601."""
    red, green, blue = colour
    return BLACK if 0.299 * red + 0.587 * green + 0.114 * blue > 128 else WHITE
