"""The dataset `scenes`: drawn shapes with captions and boxes, large enough to try the whole pipeline.

OUT/scenes.json                        seed and sizes; written first, marks the folder as this dataset's
OUT/images/scenes_000000.jpg, ...
OUT/annotations/{train,dev,test}.json  classes, attributes and boxes, see `data_tools.detection.annotations`
OUT/precomp/{train,dev,test}_ids.txt   one image id per line
OUT/precomp/{train,dev,test}_caps.txt  five captions per image, one per line, in the order of the ids
OUT/vocab.json                         SCAN's vocabulary of the train and dev captions
OUT/id_mapping.json                    written last: a folder without it is incomplete
"""

import io
import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from data_tools.captions.vocabulary import Vocabulary
from data_tools.detection.annotations import AnnotatedImage, AnnotatedObject, write_annotations
from data_tools.detection.labels import Labels
from data_tools.errors import InputError, one_line
from data_tools.files import read_json, replace_file
from data_tools.scenes.captions import write_captions
from data_tools.scenes.drawing import (
    COLOURS,
    SHAPES,
    SIDE,
    SIZES,
    TEXTURES,
    SceneObject,
    paint,
    sample_scene,
)

CLASSES = SHAPES
ATTRIBUTES = COLOURS + SIZES + TEXTURES
CAPTIONS_PER_IMAGE = 5
_JPEG_QUALITY = 95


@dataclass(frozen=True)
class _CaptionedScene:
    """One image with its boxes and captions."""

    image_id: str
    image: AnnotatedImage
    captions: list[str]


def write_scenes(out: Path, train: int = 600, dev: int = 100, test: int = 100, seed: int = 2022) -> None:
    """Draw `train` + `dev` + `test` scenes and write them into the folder `out` as a dataset.

    Equal arguments give equal bytes (with equal versions of NumPy and Pillow). A folder that holds the scenes of
    the same arguments, complete or not, is written again; other files in it are left untouched.

    Args:
        out: a new or empty folder, or one of the same scenes.
        train, dev, test: images per split; each has five captions.
        seed: scene `i` depends on the seed and on `i` only.

    Raises:
        InputError: a size or the seed is negative, all sizes are 0, or `out` cannot be written or holds something
            other than these scenes.
    """
    sizes = {"train": train, "dev": dev, "test": test}
    _check(sizes, seed)
    try:
        _claim(out, {"seed": seed, **sizes})
        _write(out, sizes, seed)
    except OSError as error:
        raise InputError(f"{error.filename or out}: cannot be written: {one_line(error)}") from error


def _check(sizes: dict[str, int], seed: int) -> None:
    for name, value in {**sizes, "seed": seed}.items():
        if value < 0:
            raise InputError(f"{name}: expected 0 or more, not {value}")
    if not any(sizes.values()):
        raise InputError("train, dev and test are all 0; fix: ask for at least one image")


def _claim(out: Path, recipe: dict[str, int]) -> None:
    """Mark `out` as the folder of these scenes; `InputError` where it holds something else."""
    marker = out / "scenes.json"
    if marker.is_file():
        found = read_json(marker)
        if found != recipe:
            raise InputError(f"{marker}: holds the scenes of {found}, not of {recipe}; fix: give another folder")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: holds something else; fix: give a new or an empty folder")
    replace_file(marker, _json(recipe))


def _write(out: Path, sizes: dict[str, int], seed: int) -> None:
    mapping_file = out / "id_mapping.json"
    mapping_file.unlink(missing_ok=True)
    for folder in ("images", "annotations", "precomp"):
        (out / folder).mkdir(exist_ok=True)
    indices = itertools.count()
    mapping: dict[str, str] = {}
    vocabulary_captions: list[str] = []
    for split, size in sizes.items():
        scenes = [_write_image(out / "images", index, seed) for index in itertools.islice(indices, size)]
        _write_split(out, split, scenes)
        mapping |= {scene.image_id: scene.image.file_name for scene in scenes}
        if split != "test":
            vocabulary_captions += [caption for scene in scenes for caption in scene.captions]
    Vocabulary.build(vocabulary_captions).save(out / "vocab.json")
    replace_file(mapping_file, _json(mapping))


def _write_image(folder: Path, index: int, seed: int) -> _CaptionedScene:
    """Draw scene number `index`; it depends on the seed and this number only."""
    rng = np.random.Generator(np.random.PCG64([seed, index]))
    scene = sample_scene(rng)
    captions = write_captions(scene.objects, rng, CAPTIONS_PER_IMAGE)
    image_id, file_name = str(index), f"scenes_{index:06d}.jpg"
    (folder / file_name).write_bytes(_jpeg(paint(scene.background, scene.objects)))
    objects = tuple(_annotated_object(item) for item in scene.objects)
    return _CaptionedScene(image_id, AnnotatedImage(file_name, image_id, SIDE, SIDE, objects), captions)


def _write_split(out: Path, split: str, scenes: list[_CaptionedScene]) -> None:
    labels = Labels(list(CLASSES), list(ATTRIBUTES))
    write_annotations(out / "annotations" / f"{split}.json", labels, [scene.image for scene in scenes])
    ids = (scene.image_id for scene in scenes)
    (out / "precomp" / f"{split}_ids.txt").write_bytes(_lines(ids))
    captions = (caption for scene in scenes for caption in scene.captions)
    (out / "precomp" / f"{split}_caps.txt").write_bytes(_lines(captions))


def _annotated_object(item: SceneObject) -> AnnotatedObject:
    x1, y1, x2, y2 = map(float, item.box)
    attributes = sorted(ATTRIBUTES.index(name) for name in (item.colour, item.size, item.texture))
    return AnnotatedObject((x1, y1, x2, y2), CLASSES.index(item.shape), tuple(attributes))


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    # Full colour resolution: stripes two pixels wide lose their colour under 4:2:0.
    image.save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling="4:4:4")
    return buffer.getvalue()


def _json(document: object) -> bytes:
    return f"{json.dumps(document)}\n".encode()


def _lines(texts: Iterable[str]) -> bytes:
    return "".join(f"{text}\n" for text in texts).encode()
