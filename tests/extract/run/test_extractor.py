"""The regions of pictures from Python: those of a store, to the byte."""

import numpy as np
import pytest
import torch
from PIL import Image

from data_tools import FeatureStore
from data_tools.configs import find_config
from data_tools.errors import InputError, UsageError
from extract import Extractor
from extract.config import load_config, with_values
from extract.run.extraction import extract
from extract.run.plan import plan_extraction
from extract.training.data import load_detection_split
from extract.training.trainer import train_detector

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two shapes, one of them turned by its EXIF block."""
    folder = tmp_path_factory.mktemp("pictures") / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, shape in (("a", (90, 120, 3)), ("b", (120, 70, 3)), ("c", (90, 120, 3))):
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{name}.png")
    turned = Image.fromarray(rng.integers(0, 256, (60, 100, 3), dtype=np.uint8))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(folder / "d.png", exif=exif)
    return folder


@pytest.mark.parametrize("dialect", ["detectron2", "caffe"])
def test_regions_are_the_bytes_of_a_store(dialect, pictures, tmp_path):
    config = "scenes"
    if dialect == "caffe":  # the published network on pictures of a tenth of its size
        config = str(tmp_path / "small.yaml")
        (tmp_path / "small.yaml").write_text(
            f"_BASE_: {find_config('extract', 'butd_r101_caffe')}\n"
            "INPUT: {MIN_SIZE_TEST: 64, MAX_SIZE_TEST: 96}\n"
            "MODEL: {RPN: {POST_NMS_TOPK_TEST: 12}}\n"
        )
    plan = plan_extraction(pictures, config=config, weights="random", bounds=(5, 9))
    extract(plan, tmp_path / "f.h5", CPU)
    extractor = Extractor.from_pretrained(config, weights="random", num_boxes=(5, 9), device="cpu")
    files = sorted(pictures.iterdir())
    found = extractor(files)
    with FeatureStore(tmp_path / "f.h5") as store:
        assert list(store.image_ids) == [file.stem for file in files]
        for row, regions in enumerate(found):
            assert regions.features.tobytes() == store.gather(np.array([row])).tobytes()
            for name in ("boxes", "class_ids", "class_scores", "attribute_ids", "attribute_scores"):
                column = store.gather_column(name, np.array([row]))
                assert getattr(regions, name).tobytes() == column.tobytes(), name
                assert getattr(regions, name).dtype == column.dtype
            assert regions.image_size == tuple(store.image_sizes[row])
            assert len(regions) == len(regions.class_names) == len(regions.attribute_names)


def test_cells_are_the_bytes_of_a_store(pictures, tmp_path):
    plan = plan_extraction(pictures, config="scenes", weights="random", grid=5)
    extract(plan, tmp_path / "f.h5", CPU)
    extractor = Extractor.from_pretrained("scenes", weights="random", grid=5, device="cpu")
    found = extractor(sorted(pictures.iterdir()))
    with FeatureStore(tmp_path / "f.h5") as store:
        for row, regions in enumerate(found):
            assert regions.features.tobytes() == store.read(row).tobytes()
            assert regions.boxes.tobytes() == store.boxes(row).tobytes()
            assert len(regions) == 25
            assert regions.class_ids.shape == regions.attribute_scores.shape == (0,)
            assert regions.class_names == regions.attribute_names == []
    for settings in ({"num_boxes": 9}, {"selection": "detectron2"}, {"threshold": 0.1}, {"nms": 0.4}):
        with pytest.raises(UsageError, match="grid gives all regions"):
            Extractor.from_pretrained("scenes", weights="random", grid=5, device="cpu", **settings)
    with pytest.raises(ValueError, match="1 to 100 cells"):
        Extractor.from_pretrained("scenes", weights="random", grid=0, device="cpu")


@pytest.fixture(scope="module")
def extractor():
    return Extractor.from_pretrained("scenes", weights="random", device="cpu")


def test_a_file_an_image_and_an_array_have_the_same_regions(extractor, pictures):
    file = pictures / "d.png"
    with Image.open(file) as image:
        upright = np.asarray(image.convert("RGB").rotate(-90, expand=True))
        expected = extractor(upright)
        assert expected.image_size == (100, 60)
        for picture in (str(file), file, image):
            regions = extractor(picture)
            assert regions.image_size == expected.image_size
            assert regions.features.tobytes() == expected.features.tobytes()
            assert regions.boxes.tobytes() == expected.boxes.tobytes()
    assert extractor([]) == []


def test_names_are_those_of_the_ids(extractor, pictures):
    regions = extractor(pictures / "a.png")
    names = ["circle", "square", "triangle", "star"]
    assert regions.class_names == [names[label] for label in regions.class_ids]


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((4, 4), np.uint8), r"picture 0: expected an array .* found uint8 \(4, 4\)"),
        (np.zeros((4, 4, 3), np.float32), "picture 0: .* found float32"),
        (np.zeros((0, 4, 3), np.uint8), "picture 0: "),
        ("nowhere.jpg", "nowhere.jpg: cannot be read: no such file"),
    ],
)
def test_what_is_no_picture_is_named(extractor, picture, message):
    with pytest.raises(InputError, match=message):
        extractor(picture)


def test_a_damaged_picture_among_good_ones_is_named(extractor, pictures, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"bad\.jpg: cannot be read: not an image"):
        extractor([pictures / "a.png", tmp_path / "bad.jpg"])


def test_a_run_folder_is_its_configuration_and_weights(scenes, tmp_path, pictures):
    cfg = with_values(load_config("scenes"), device="cpu", output=str(tmp_path / "run")).clone()
    cfg.defrost()
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_WORKERS = 1, 2, 0
    cfg.freeze()
    weights = train_detector(cfg, load_detection_split(scenes, "train"), tmp_path / "run")
    regions = Extractor.from_pretrained(tmp_path / "run", device="cpu")(pictures / "a.png")
    same = Extractor.from_pretrained("scenes", weights=str(weights), device="cpu")(pictures / "a.png")
    other = Extractor.from_pretrained("scenes", weights="random", device="cpu")(pictures / "a.png")
    assert regions.features.tobytes() == same.features.tobytes() != other.features.tobytes()


def test_what_is_not_there_is_one_line(tmp_path):
    with pytest.raises(UsageError, match="vg_r101 needs --weights"):
        Extractor.from_pretrained("vg_r101", device="cpu")
    with pytest.raises(InputError, match="no such weight file"):
        Extractor.from_pretrained("scenes", weights=str(tmp_path / "none.pth"), device="cpu")
    with pytest.raises(ValueError, match="int8"):
        Extractor.from_pretrained("scenes", weights="random", precision="int8")
