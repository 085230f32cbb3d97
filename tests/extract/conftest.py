import json

import numpy as np
import pytest
import torch
from PIL import Image

from data_tools.scenes.dataset import write_scenes
from extract.build import build_detector
from extract.config import load_config


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """A few drawn scenes."""
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, train=4, dev=2, test=3, seed=7)
    return folder


@pytest.fixture(scope="session")
def scenes_config():
    """The configuration of the small detector."""
    return load_config("scenes")


@pytest.fixture(scope="session")
def detector(scenes_config):
    """The small detector, untrained."""
    return build_detector(scenes_config, None, torch.device("cpu"))


@pytest.fixture
def bad_images(tmp_path):
    """A folder with its id mapping, which holds four good pictures and one of every kind of bad file."""
    folder = tmp_path / "data" / "images"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(3)
    for name, size in (("a", (40, 60)), ("b", (60, 40)), ("c", (40, 60)), ("tiny", (1, 1))):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("no picture")
    (folder / "short.png").write_bytes((folder / "a.png").read_bytes()[:-300])
    names = ["a.png", "empty.jpg", "b.png", "text.jpg", "short.png", "missing.jpg", "c.png", "tiny.png"]
    mapping = {str(100 + number): name for number, name in enumerate(names)}
    (folder.parent / "id_mapping.json").write_text(json.dumps(mapping))
    return folder
