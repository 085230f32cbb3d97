"""Drawing scenes: a few coloured shapes on a muted background, and the box of each.

Images are RGB of `SIDE` x `SIDE` pixels. Boxes are x1 y1 x2 y2 in pixels, the right and lower edges
exclusive, and tight: the first and the last row and column of a box each hold a pixel of the object.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw

SIDE = 160
SHAPES = ("circle", "square", "triangle", "star")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "black", "white")
SIZES = ("small", "large")
TEXTURES = ("plain", "striped", "dotted")

Colour = tuple[int, int, int]
Point = tuple[float, float]
Box = tuple[int, int, int, int]
Item = TypeVar("Item")

# The colour of an object and that of its stripes or dots. Both keep the name of the colour true: light
# patterns on dark or saturated colours, dark ones where a light pattern would not be seen.
_PAINT: dict[str, tuple[Colour, Colour]] = {
    "red": ((206, 32, 41), (255, 214, 210)),
    "orange": ((242, 121, 15), (255, 230, 200)),
    "yellow": ((250, 214, 32), (92, 70, 12)),
    "green": ((38, 148, 66), (208, 244, 206)),
    "blue": ((33, 86, 214), (206, 224, 255)),
    "purple": ((128, 44, 176), (238, 208, 255)),
    "black": ((28, 28, 32), (176, 178, 184)),
    "white": ((246, 246, 242), (96, 104, 118)),
}
_COLOUR_JITTER = 10  # grey levels either way, each channel
_LONGER_SIDE = {"small": (28, 32), "large": (46, 52)}  # pixels, both included
_PATTERN_PERIOD = {"small": 7.0, "large": 8.0}  # pixels from stripe to stripe or dot to dot
_TILT = 6  # degrees either way
_STAR_WAIST = 0.4  # radius of a star's inner corners, its points being at 1
_OUTLINE = 1.5  # pixels, inside the shape
_SUPERSAMPLING = 4
_MOST_OVERLAP = 0.05  # intersection over union of two boxes
_BORDER = 2  # pixels that stay free along the edges of the image
_TONES = (88, 186)  # the range of the backgrounds, between black and white objects


@dataclass(frozen=True)
class SceneObject:
    """One object: what it is, its picture (RGBA, cropped to its pixels) and where that picture's corner lies."""

    shape: str
    colour: str
    size: str
    texture: str
    sprite: Image.Image
    left: int
    top: int

    @property
    def box(self) -> Box:
        """x1 y1 x2 y2 in pixels."""
        return self.left, self.top, self.left + self.sprite.width, self.top + self.sprite.height


@dataclass(frozen=True)
class Scene:
    """A background (RGB, `SIDE` x `SIDE`) and its objects, in the order in which they are drawn."""

    background: Image.Image
    objects: tuple[SceneObject, ...]


def pick(rng: np.random.Generator, items: Sequence[Item]) -> Item:
    """One of `items`, each as likely."""
    return items[int(rng.integers(len(items)))]


def sample_scene(rng: np.random.Generator) -> Scene:
    """A scene of 2 to 4 different objects, their boxes overlapping by less than 0.05 (IoU)."""
    background = _background(rng)
    unplaced = _sample_objects(rng)
    while True:
        objects = [_place(item, rng) for item in unplaced]
        if all(_overlap(a.box, b.box) < _MOST_OVERLAP for a, b in itertools.combinations(objects, 2)):
            # Large ones first: where two touch, the small one stays whole.
            return Scene(background, tuple(sorted(objects, key=lambda item: item.size)))


def paint(background: Image.Image, objects: Iterable[SceneObject]) -> Image.Image:
    """`background` with `objects` drawn over it one after the other: a new RGB image."""
    image = background.copy()
    for item in objects:
        image.paste(item.sprite, (item.left, item.top), mask=item.sprite)
    return image


def _sample_objects(rng: np.random.Generator) -> list[SceneObject]:
    """2 to 4 objects that have no place yet, no two of them alike in all that captions say of them."""
    looks = list(itertools.product(SHAPES, COLOURS, SIZES, TEXTURES))
    chosen = rng.choice(len(looks), size=int(rng.integers(2, 5)), replace=False)
    objects = []
    for shape, colour, size, texture in (looks[i] for i in chosen):
        sprite = _sprite(shape, colour, size, texture, rng)
        objects.append(SceneObject(shape, colour, size, texture, sprite, left=0, top=0))
    return objects


def _place(item: SceneObject, rng: np.random.Generator) -> SceneObject:
    left = int(rng.integers(_BORDER, SIDE - _BORDER - item.sprite.width + 1))
    top = int(rng.integers(_BORDER, SIDE - _BORDER - item.sprite.height + 1))
    return replace(item, left=left, top=top)


def _overlap(a: Box, b: Box) -> float:
    """Intersection over union."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union


def _sprite(shape: str, colour: str, size: str, texture: str, rng: np.random.Generator) -> Image.Image:
    """The object alone: RGBA, cropped to the pixels it covers."""
    low, high = _LONGER_SIDE[size]
    length = int(rng.integers(low, high + 1))
    side = (length + 2) * _SUPERSAMPLING
    corners = _corners(shape, rng, extent=length * _SUPERSAMPLING, middle=side / 2)
    ground, pattern = _paint(colour, rng)

    colours = Image.new("RGB", (side, side), ground)
    draw = ImageDraw.Draw(colours)
    _draw_pattern(draw, texture, _PATTERN_PERIOD[size] * _SUPERSAMPLING, pattern, side, rng)
    # Half of the line lies outside the shape, where the coverage below cuts it off.
    edge = tuple(level * 3 // 8 for level in ground)
    draw.line([*corners, *corners[:2]], fill=edge, width=round(2 * _OUTLINE * _SUPERSAMPLING))
    coverage = Image.new("L", (side, side), 0)
    ImageDraw.Draw(coverage).polygon(corners, fill=255)

    sprite = colours.reduce(_SUPERSAMPLING)
    alpha = coverage.reduce(_SUPERSAMPLING)
    sprite.putalpha(alpha)
    return sprite.crop(alpha.getbbox())


def _corners(shape: str, rng: np.random.Generator, extent: float, middle: float) -> list[Point]:
    """A slightly tilted polygon whose longer side measures `extent`, centred on (`middle`, `middle`)."""
    radii = {
        "circle": (1.0,) * 64,
        "square": (1.0,) * 4,
        "triangle": (1.0,) * 3,
        "star": (1.0, _STAR_WAIST) * 5,
    }
    upright = -90 + (45 if shape == "square" else 0)
    tilt = int(rng.integers(-_TILT, _TILT + 1))
    step = 2 * math.pi / len(radii[shape])
    angles = [math.radians(upright + tilt) + step * i for i in range(len(radii[shape]))]
    xs = [radius * math.cos(angle) for radius, angle in zip(radii[shape], angles, strict=True)]
    ys = [radius * math.sin(angle) for radius, angle in zip(radii[shape], angles, strict=True)]
    scale = extent / max(max(xs) - min(xs), max(ys) - min(ys))
    centre_x, centre_y = (max(xs) + min(xs)) / 2, (max(ys) + min(ys)) / 2
    return [
        (middle + (x - centre_x) * scale, middle + (y - centre_y) * scale) for x, y in zip(xs, ys, strict=True)
    ]


def _paint(colour: str, rng: np.random.Generator) -> tuple[Colour, Colour]:
    jitter = rng.integers(-_COLOUR_JITTER, _COLOUR_JITTER + 1, size=3)
    ground, pattern = (np.clip(np.add(paint, jitter), 0, 255).tolist() for paint in _PAINT[colour])
    return tuple(ground), tuple(pattern)


def _draw_pattern(
    draw: ImageDraw.ImageDraw,
    texture: str,
    period: float,
    colour: Colour,
    side: int,
    rng: np.random.Generator,
) -> None:
    """Stripes or dots, `period` apart, at a random angle over the whole canvas of `side` x `side`."""
    angle = math.radians(int(rng.integers(0, 180)))
    along, across = (math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))
    reach = math.ceil(side / period)

    def point(u: float, v: float) -> Point:
        x = side / 2 + (u * along[0] + v * across[0]) * period
        y = side / 2 + (u * along[1] + v * across[1]) * period
        return x, y

    if texture == "striped":
        for row in range(-reach, reach + 1):
            draw.line([point(-reach, row), point(reach, row)], fill=colour, width=round(0.42 * period))
    elif texture == "dotted":
        radius = 0.29 * period
        for row, column in itertools.product(range(-reach, reach + 1), repeat=2):
            x, y = point(column + (row % 2) / 2, row * math.sqrt(3) / 2)
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def _background(rng: np.random.Generator) -> Image.Image:
    """Two muted tones mixed by a smooth field, with a little grain: RGB, `SIDE` x `SIDE`."""
    tint = rng.integers(-12, 13, size=3)
    first, second = (np.clip(rng.integers(*_TONES) + tint + rng.integers(-5, 6, size=3), *_TONES) for _ in "ab")
    mix = pick(rng, (_flat, _gradient, _clouds, _checks))(rng)[:, :, None]
    grain = rng.integers(-4, 5, size=(SIDE, SIDE, 1))
    levels = np.rint(first + (second - first) * mix) + grain
    return Image.fromarray(levels.astype(np.uint8))


def _flat(rng: np.random.Generator) -> np.ndarray:
    return np.full((SIDE, SIDE), rng.random())


def _gradient(rng: np.random.Generator) -> np.ndarray:
    angle = math.radians(int(rng.integers(0, 360)))
    y, x = np.mgrid[0:SIDE, 0:SIDE] / (SIDE - 1) - 0.5
    ramp = x * math.cos(angle) + y * math.sin(angle)
    return ramp / (abs(math.cos(angle)) + abs(math.sin(angle))) + 0.5


def _clouds(rng: np.random.Generator) -> np.ndarray:
    cells = int(rng.integers(4, 9))
    coarse = Image.fromarray(rng.integers(0, 256, size=(cells, cells), dtype=np.uint8))
    return np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) / 255


def _checks(rng: np.random.Generator) -> np.ndarray:
    """A soft chequerboard of low contrast."""
    waves = int(rng.integers(3, 7))
    wave = np.sin(np.arange(SIDE) * (2 * math.pi * waves / SIDE))
    return 0.5 + 0.25 * wave[:, None] * wave[None, :]
