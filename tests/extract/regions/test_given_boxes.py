import json

import numpy as np
import pytest

from data_tools.errors import InputError
from data_tools.store.schema import Block, StoreSchema
from data_tools.store.writing import write_store
from extract.regions.given_boxes import load_boxes


def test_boxes_of_json_by_image(tmp_path):
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps({"7": [[1, 2, 3.5, 4], [0, 0, 0, 0]], "8": []}))
    boxes = load_boxes(path)
    assert list(boxes) == ["7"]  # an image without boxes has none to describe
    assert boxes["7"].dtype == np.float32
    assert boxes["7"].tolist() == [[1, 2, 3.5, 4], [0, 0, 0, 0]]


def store(path, columns):
    block = Block(["a", "b"], np.array([2, 0]), {"features": np.zeros((2, 3), np.float32), **columns})
    write_store(path, [block], StoreSchema.of([block]), {})
    return path


def test_boxes_of_a_store(tmp_path):
    rows = np.array([[0, 1, 2, 3], [4, 5, 6, 7]], np.float32)
    boxes = load_boxes(store(tmp_path / "f.h5", {"boxes": rows}))
    assert list(boxes) == ["a"]
    np.testing.assert_array_equal(boxes["a"], rows)


def test_a_store_without_boxes_is_refused(tmp_path):
    with pytest.raises(InputError, match="this store has no boxes"):
        load_boxes(store(tmp_path / "f.h5", {}))


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([[1, 2, 3, 4]], "expected an object"),
        ({"7": [[1, 2, 3]]}, "image 7: expected a list of"),
        ({"7": 3}, "image 7: expected a list of"),
        ({"7": [["a", 2, 3, 4]]}, "image 7: expected a list of"),
        ({"7": [[1, 2, 3, 4], [5, 2, 3, 4]]}, "image 7: box 1 is .*expected x1 <= x2"),
        ({"7": [[1, 2, float("nan"), 4]]}, "image 7: box 0"),
    ],
)
def test_malformed_boxes_name_the_image(tmp_path, document, message):
    (tmp_path / "boxes.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=message):
        load_boxes(tmp_path / "boxes.json")


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(InputError, match="no such file of boxes"):
        load_boxes(tmp_path / "absent.json")


@pytest.mark.parametrize(
    "rows",
    [
        "[[0, 0, 1" + "0" * 400 + ", 5]]",
        "[[0, 0, 1e400, 5]]",
        "[[0, 0, NaN, 5]]",
        '[["0", "0", "5", "5"]]',
        "[[true, false, true, true]]",
        "[[0, 0, 5]]",
        "[[0, 0, 5, 5], [1, 2, 3]]",
        "[0, 0, 5, 5]",
        "[[[0, 0, 5, 5]]]",
        "[[5, 0, 0, 5]]",
        "{}",
        "3",
        "null",
        '"text"',
        "[[0, 0, 1e39, 5]]",
    ],
)
def test_boxes_that_are_none_are_one_line(tmp_path, rows):
    (tmp_path / "boxes.json").write_text(f'{{"7": {rows}}}')
    with pytest.raises(InputError, match=r"boxes\.json: .*image 7") as raised:
        load_boxes(tmp_path / "boxes.json")
    assert "\n" not in str(raised.value)


def test_a_region_of_a_store_that_has_no_box_is_named(tmp_path):
    columns = {"boxes": np.ones((2, 4), np.float32), "box_confidence": np.array([1, 0], np.float32)}
    with pytest.raises(InputError, match="image a: region 1 has no box"):
        load_boxes(store(tmp_path / "f.h5", columns))
