"""The data set `scenes`: drawn shapes with captions and boxes, enough to try the whole pipeline on.

OUT/scenes.json                        seed and sizes; written first, says whose the folder is
OUT/images/scenes_000000.jpg, ...
OUT/annotations/{train,dev,test}.json  classes, attributes and Detectron2 dataset dicts
OUT/precomp/{train,dev,test}_ids.txt   one image id a line
OUT/precomp/{train,dev,test}_caps.txt  five captions an image, in the order of the ids
OUT/vocab.json                         SCAN's vocabulary of the train and dev captions
OUT/id_mapping.json                    written last: a folder without it is not complete
"""

import io
import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_tools.captions.vocabulary import Vocabulary
from data_tools.errors import InputError
from data_tools.files import read_json, replace_file
from data_tools.scenes.captions import write_captions
from data_tools.scenes.drawing import (
    COLOURS,
    SHAPES,
    SIDE,
    SIZES,
    TEXTURES,
    Scene,
    SceneObject,
    paint,
    sample_scene,
)

CLASSES = SHAPES
ATTRIBUTES = COLOURS + SIZES + TEXTURES
CAPTIONS_PER_IMAGE = 5
_XYXY_ABS = 0  # the value of detectron2.structures.BoxMode.XYXY_ABS, which data_tools may not import
_JPEG_QUALITY = 95


@dataclass(frozen=True)
class _Entry:
    """What the data set says of one image."""

    image_id: str
    file_name: str
    captions: list[str]
    dataset_dict: dict[str, Any]


def write_scenes(out: Path, train: int = 600, dev: int = 100, test: int = 100, seed: int = 2022) -> None:
    """Draw `train` + `dev` + `test` scenes and write them into the folder `out` as a data set.

    Every byte follows from the arguments (and from the versions of NumPy and Pillow). A folder that holds the
    scenes of the same arguments, complete or not, is written anew; what else lies in it stays untouched.

    Raises:
        InputError: a size or the seed is negative, there is no image to draw, or `out` cannot be written or
            holds something other than these scenes.
    """
    sizes = {"train": train, "dev": dev, "test": test}
    _check(sizes, seed)
    try:
        _claim(out, {"seed": seed, **sizes})
        _write(out, sizes, seed)
    except OSError as error:
        raise InputError(f"{error.filename or out}: cannot be written: {error.strerror or error}") from error


def _check(sizes: dict[str, int], seed: int) -> None:
    for name, value in {**sizes, "seed": seed}.items():
        if value < 0:
            raise InputError(f"{name}: expected 0 or more, not {value}")
    if not any(sizes.values()):
        raise InputError("train, dev and test are all 0: there is no scene to draw")


def _claim(out: Path, recipe: dict[str, int]) -> None:
    """Make `out` the folder of the scenes of `recipe`, unless it already belongs to something else."""
    marker = out / "scenes.json"
    if marker.is_file():
        found = read_json(marker)
        if found != recipe:
            raise InputError(f"{marker}: expected {recipe}, found {found}; name another folder or remove this")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: expected a new folder, an empty one or one of scenes")
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
        entries = [_write_image(out / "images", index, seed) for index in itertools.islice(indices, size)]
        _write_split(out, split, entries)
        mapping |= {entry.image_id: entry.file_name for entry in entries}
        if split != "test":
            vocabulary_captions += [caption for entry in entries for caption in entry.captions]
    Vocabulary.build(vocabulary_captions).save(out / "vocab.json")
    replace_file(mapping_file, _json(mapping))


def _write_image(folder: Path, index: int, seed: int) -> _Entry:
    """Draw scene number `index`; it depends on the seed and its number alone."""
    rng = np.random.Generator(np.random.PCG64([seed, index]))
    scene = sample_scene(rng)
    captions = write_captions(scene.objects, rng, CAPTIONS_PER_IMAGE)
    image_id, file_name = str(index), f"scenes_{index:06d}.jpg"
    (folder / file_name).write_bytes(_jpeg(paint(scene.background, scene.objects)))
    return _Entry(image_id, file_name, captions, _dataset_dict(image_id, file_name, scene))


def _write_split(out: Path, split: str, entries: list[_Entry]) -> None:
    annotations = {
        "classes": CLASSES,
        "attributes": ATTRIBUTES,
        "images": [entry.dataset_dict for entry in entries],
    }
    (out / "annotations" / f"{split}.json").write_bytes(_json(annotations))
    ids = (entry.image_id for entry in entries)
    (out / "precomp" / f"{split}_ids.txt").write_bytes(_lines(ids))
    captions = (caption for entry in entries for caption in entry.captions)
    (out / "precomp" / f"{split}_caps.txt").write_bytes(_lines(captions))


def _dataset_dict(image_id: str, file_name: str, scene: Scene) -> dict[str, Any]:
    """Detectron2's description of an image, `file_name` relative to the images folder."""
    return {
        "file_name": file_name,
        "image_id": image_id,
        "height": SIDE,
        "width": SIDE,
        "annotations": [_annotation(item) for item in scene.objects],
    }


def _annotation(item: SceneObject) -> dict[str, Any]:
    return {
        "bbox": [float(edge) for edge in item.box],
        "bbox_mode": _XYXY_ABS,
        "category_id": CLASSES.index(item.shape),
        "attribute_ids": sorted(ATTRIBUTES.index(name) for name in (item.colour, item.size, item.texture)),
    }


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    # Full colour resolution: stripes two pixels wide lose their colour under 4:2:0.
    image.save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling="4:4:4")
    return buffer.getvalue()


def _json(document: Any) -> bytes:
    return f"{json.dumps(document)}\n".encode()


def _lines(texts: Iterable[str]) -> bytes:
    return "".join(f"{text}\n" for text in texts).encode()
