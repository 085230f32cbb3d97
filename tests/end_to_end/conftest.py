"""Small data sets in the formats of the download pages: pictures of noise, captions from a few words."""

import base64
import json

import numpy as np
import pytest
from PIL import Image

from data_tools.store.schema import Block, StoreSchema
from data_tools.store.writing import write_store

WHO, WHAT = ("a man", "two dogs", "a girl in red", "an old boat"), ("on the grass", "by the sea", "in a street")
REGIONS, DIM, HEIGHT, WIDTH = 4, 8, 48, 64
MADE = {"config": "small example", "weights_sha256": "none", "selection": "random", "feature_dtype": "float32"}


def caption(number, image):
    return f"{WHO[(number + image) % len(WHO)].capitalize()} {WHAT[(number * image) % len(WHAT)]} ."


def picture(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, quality=90)


def regions(seed):
    rng = np.random.default_rng(seed)
    boxes = np.sort(rng.uniform(0, 48, (REGIONS, 2, 2)), axis=1).reshape(REGIONS, 4).astype(np.float32)
    return boxes, rng.normal(size=(REGIONS, DIM)).astype(np.float32)


def karpathy(name, images):
    """`dataset_*.json` of (number, file, split, captions)."""
    entries = []
    for number, file, split, captions in images:
        folder, _, filename = file.rpartition("/")
        sentences = [
            {"raw": caption(n, number), "tokens": [], "sentid": 100 * number + n} for n in range(captions)
        ]
        ids = {"filepath": folder, "cocoid": number} if folder else {}
        entries.append({**ids, "imgid": number, "filename": filename, "split": split, "sentences": sentences})
    return json.dumps({"dataset": name, "images": entries})


def make_coco(folder):
    splits = ["train"] * 5 + ["restval"] + ["val"] * 2 + ["test"] * 3
    images = []
    for number, split in enumerate(splits, start=9):
        part = "train2014" if split == "train" else "val2014"
        captions = {10: 6, 11: 4}.get(number, 5)
        images.append((number, f"{part}/COCO_{part}_{number:012d}.jpg", split, captions))
        picture(folder / "images" / images[-1][1], number)
    (folder / "dataset_coco.json").write_text(karpathy("coco", images))
    for part in ("train2014", "val2014"):
        chosen = [image for image in images if image[1].startswith(part)]
        document = {
            "images": [{"id": n, "file_name": file.split("/")[1]} for n, file, _, _ in chosen],
            "annotations": [
                {"image_id": n, "id": 100 * n + k, "caption": caption(k, n)}
                for n, _, _, count in chosen
                for k in range(count)
            ],
        }
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / "annotations" / f"captions_{part}.json").write_text(json.dumps(document))
    (folder / "lists").mkdir()
    for name, split in (("dev", "val"), ("test", "test")):
        lines = "".join(f"{n}\n" for n, _, other, _ in images if other == split)
        (folder / "lists" / f"{name}.txt").write_text(lines)
    with (folder / "trainval.tsv").open("w") as file:
        for number, *_ in images:
            boxes, features = (base64.b64encode(array).decode() for array in regions(number))
            file.write(f"{number}\t{WIDTH}\t{HEIGHT}\t{REGIONS}\t{boxes}\t{features}\r\n")


def make_f30k(folder):
    splits = ["train"] * 4 + ["val", "test"]
    images = [(number, f"{1000 + number}.jpg", split, 5) for number, split in enumerate(splits)]
    for number, file, *_ in images:
        picture(folder / "flickr30k-images" / file, 100 + number)
    (folder / "dataset_flickr30k.json").write_text(karpathy("flickr30k", images))
    (folder / "precomp").mkdir()
    for name, first, last in (("train", 0, 4), ("dev", 4, 5), ("test", 5, 6)):
        arrays = np.stack([regions(100 + number)[1] for number in range(first, last)])
        np.save(folder / "precomp" / f"{name}_ims.npy", arrays)


def make_mine(folder):
    rows = ["image,caption"]
    for number in range(10):
        picture(folder / "images" / "holiday" / f"{number}.jpg", 200 + number)
        rows += [f'holiday/{number}.jpg,"{caption(n, number)}"' for n in range(1 + number % 2)]
    (folder / "captions.csv").write_text("\r\n".join(rows))
    for machine, numbers in (("one", range(6)), ("two", range(6, 10))):
        found = [regions(200 + number) for number in numbers]
        columns = {
            "features": np.concatenate([features for _, features in found]),
            "boxes": np.concatenate([boxes for boxes, _ in found]),
        }
        sizes = np.full((len(numbers), 2), (HEIGHT, WIDTH), np.int32)
        block = Block([str(n) for n in numbers], np.full(len(numbers), REGIONS), columns, sizes)
        (folder / "machines").mkdir(exist_ok=True)
        write_store(folder / "machines" / f"{machine}.h5", [block], StoreSchema.of([block]), MADE)


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    """A folder that holds `data/{coco,f30k,mine}` as they are after downloading."""
    folder = tmp_path_factory.mktemp("downloads")
    make_coco(folder / "data" / "coco")
    make_f30k(folder / "data" / "f30k")
    make_mine(folder / "data" / "mine")
    return folder
