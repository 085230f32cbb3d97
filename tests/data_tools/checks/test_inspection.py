import dataclasses

import numpy as np
import pytest
from PIL import Image

from data_tools.checks.inspection import as_text, draw_image, inspect_store, region_labels, statistics
from data_tools.detection.labels import Labels
from data_tools.errors import InputError
from data_tools.images.drawing import COLOURS
from data_tools.store.reading import FeatureStore
from data_tools.store.schema import REGION_COLUMNS, Block, StoreSchema
from data_tools.store.writing import write_store


def store_of(path, block, provenance=None):
    write_store(path, [block], StoreSchema.of([block]), provenance or {"selection": "all\nof them"})
    return FeatureStore(path)


@pytest.fixture
def block(make_block):
    made = make_block(["a", "b", "c"], [2, 0, 3], dim=5)
    made.image_sizes[:] = [[30, 40], [50, 60], [70, 80]]
    made.regions["boxes"][0] = [4, 5, 20, 25]
    return made


def test_statistics_are_those_of_all_numbers(tmp_path, block):
    features = block.regions["features"]
    features[0] = 0
    features[1, 0] = np.nan
    found = statistics(store_of(tmp_path / "f.h5", block), None)
    finite = features[[0, 2, 3, 4]].astype(np.float64)
    assert (found.images, found.not_finite, found.all_zero) == (3, 1, 1)
    assert found.mean == pytest.approx(np.mean(finite))
    assert found.std == pytest.approx(np.std(finite))
    assert (found.min, found.max) == (finite.min(), finite.max())
    assert found.zeros == 5 / 20
    assert found.norm == pytest.approx(np.mean([np.sqrt(sum(x * x for x in row)) for row in finite.tolist()]))
    assert statistics(FeatureStore(tmp_path / "f.h5"), 2).images == 2


def test_an_inspection_has_sizes_types_provenance_and_first_images(tmp_path, block):
    found = inspect_store(store_of(tmp_path / "f.h5", block))
    assert (found["format"], found["images"], found["regions"], found["dim"]) == ("region-features 1", 3, 5, 5)
    assert found["bytes"] == (tmp_path / "f.h5").stat().st_size
    assert found["regions_per_image"] == {"min": 0, "mean": 5 / 3, "max": 3}
    assert found["datasets"]["features"] == {"shape": [5, 5], "type": "float32", "bytes": 100}
    assert found["datasets"]["image_ids"]["type"] == "text"
    assert set(found["datasets"]) == {"image_ids", "offsets", "image_sizes", "features", *REGION_COLUMNS}
    assert (found["provenance"], found["failures"]) == ({"selection": "all\nof them"}, [])
    assert found["statistics"]["max"] == block.regions["features"].max()
    assert [(row["id"], row["regions"]) for row in found["rows"]] == [("a", 2), ("b", 0), ("c", 3)]
    lines = as_text(found).splitlines()
    assert lines[1].strip() == "3 images, 5 regions (0 to 3 per image, 1.7 on average)"
    assert ["selection", "all", "...", "(2", "lines)"] in [line.split() for line in lines]


def test_an_empty_store_is_inspected(tmp_path):
    empty = Block([], np.empty(0, np.int64), {"features": np.empty((0, 4), np.float32)})
    found = inspect_store(store_of(tmp_path / "e.h5", empty, {"a": "b"}))
    assert (found["images"], found["regions"], found["statistics"], found["rows"]) == (0, 0, None, [])
    assert found["regions_per_image"] == {"min": 0, "mean": 0.0, "max": 0}
    assert len(as_text(found).splitlines()) > 5


def test_labels_are_names_where_they_are_known(tmp_path, block):
    block.regions["class_ids"][:] = [0, 1, 9, 0, 0]
    block.regions["attribute_ids"][:] = [1, 0, 0, 0, 0]
    block.regions["class_scores"][:] = 0.25
    names = {"class_names": "cat\nblack dog", "attribute_names": "old\nnew"}
    store = store_of(tmp_path / "f.h5", block, names)
    assert region_labels(store, 0) == ["new cat 0.25", "old black dog 0.25"]
    assert region_labels(store, 2)[0] == "old class 9 0.25"
    assert region_labels(store, 0, Labels(["x"], ["y"]))[0] == "attribute 1 x 0.25"
    store = store_of(tmp_path / "g.h5", block)
    assert region_labels(store, 0)[1] == "attribute 0 class 1 0.25"
    bare = dataclasses.replace(block, regions={"features": block.regions["features"]})
    assert region_labels(store_of(tmp_path / "h.h5", bare), 0) == ["region 0", "region 1"]


@pytest.mark.parametrize("mapped", [True, False])
def test_boxes_are_drawn_on_the_picture_of_the_id(tmp_path, block, mapped):
    store, images = store_of(tmp_path / "f.h5", block), tmp_path / "images"
    (images / "x").mkdir(parents=True)
    file = "x/one.png" if mapped else "x/a.png"
    if mapped:
        (tmp_path / "id_mapping.json").write_text('{"a": "x/one.png"}')
    Image.new("RGB", (40, 30), (9, 9, 9)).save(images / file)
    drawn = np.asarray(draw_image(store, "a", images))
    assert drawn.shape == (480, 640, 3)
    assert (drawn[5 * 16 : 25 * 16, 4 * 16] == COLOURS[0]).all(axis=-1).sum() > 200
    Image.new("RGB", (41, 30)).save(images / file)
    with pytest.raises(InputError, match=r"41 x 30 pixels, but its regions in .* were extracted at 40 x 30"):
        draw_image(store, "a", images)
    (images / file).write_bytes(b"no picture")
    with pytest.raises(InputError, match="cannot be read: not an image"):
        draw_image(store, "a", images)
    (images / file).unlink()
    with pytest.raises(InputError, match=r"no such file|holds no file called a"):
        draw_image(store, "a", images)
    with pytest.raises(InputError, match="no features of image z"):
        draw_image(store, "z", images)


def test_a_store_without_boxes_cannot_be_drawn(tmp_path, block):
    bare = dataclasses.replace(block, regions={"features": block.regions["features"]})
    with pytest.raises(InputError, match="holds no boxes"):
        draw_image(store_of(tmp_path / "f.h5", bare), "a", tmp_path)


def test_a_region_without_a_box_is_not_drawn(tmp_path, block):
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (40, 30), (9, 9, 9)).save(images / "a.png")
    columns = block.regions | {"box_confidence": np.array([0, 1, 1, 1, 1], np.float32)}
    store = store_of(tmp_path / "f.h5", dataclasses.replace(block, regions=columns))
    rest = {name: values[1:] for name, values in block.regions.items()}
    second = dataclasses.replace(block, counts=np.array([1, 0, 3]), regions=rest)
    expected = draw_image(store_of(tmp_path / "g.h5", second), "a", images)
    np.testing.assert_array_equal(draw_image(store, "a", images), expected)
    assert "without a box" in inspect_store(store)["rows"][0]["first"]
