import copy
import json

import pytest

from data_tools.detection.annotations import read_annotations
from data_tools.detection.coco import from_coco
from data_tools.errors import InputError

DOCUMENT = {
    "info": {"year": 2026},
    "categories": [
        {"id": 90, "name": "dog", "supercategory": "animal"},
        {"id": 7, "name": "cat"},
        {"id": 13, "name": "stop sign"},
    ],
    "attributes": [{"id": 8, "name": "white"}, {"id": 3, "name": "old"}],
    "images": [
        {"id": 42, "file_name": "a.jpg", "height": 40, "width": 60},
        {"id": 5, "file_name": "b.jpg", "height": 50, "width": 50},
    ],
    "annotations": [
        {"id": 1, "image_id": 42, "category_id": 90, "bbox": [10, 5.5, 20, 30], "attribute_ids": [8, 3, 8]},
        {"id": 2, "image_id": 42, "category_id": 7, "bbox": [50, -4, 30, 14], "iscrowd": 0, "area": 420},
        {"id": 3, "image_id": 42, "category_id": 13, "bbox": [0, 0, 60, 40], "iscrowd": 1},
        {"id": 4, "image_id": 42, "category_id": 13, "bbox": [70, 0, 9, 9]},
        {"id": 5, "image_id": 42, "category_id": 7, "bbox": [7, 7, 0, 9], "attributes": {"occluded": False}},
    ],
}


def test_a_file_of_coco_becomes_annotations(tmp_path):
    path = tmp_path / "train.json"
    path.write_text(json.dumps(DOCUMENT))
    found = read_annotations(path)
    assert found.classes == ["cat", "stop sign", "dog"]
    assert found.attributes == ["old", "white"]
    first, second = found.images
    assert (first.image_id, first.file_name, first.height, first.width) == (42, "a.jpg", 40, 60)
    assert [item.bbox for item in first.annotations] == [(10, 5.5, 30, 35.5), (50, 0, 60, 10)]
    assert [item.category_id for item in first.annotations] == [2, 0]
    assert [item.attribute_ids for item in first.annotations] == [(0, 1), ()]
    assert second.annotations == ()
    assert [note.split()[0] for note in found.notes] == ["1", "2", "1"]  # a crowd, two boxes, an image


def test_without_attributes_there_are_none():
    document = {key: value for key, value in DOCUMENT.items() if key != "attributes"}
    document["annotations"] = DOCUMENT["annotations"][1:]
    assert from_coco(document)[0]["attributes"] == []
    document["annotations"] = DOCUMENT["annotations"]
    with pytest.raises(ValueError, match=r"annotations\[0\]: attribute_ids 8: is not listed"):
        from_coco(document)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["annotations"][0].update(category_id=0), r"annotations\[0\]: category_id 0: is not listed"),
        (lambda d: d["annotations"][1].update(image_id=43), r"annotations\[1\]: image_id 43: is not listed"),
        (lambda d: d["annotations"][1].update(image_id=[]), r"annotations\[1\]: image_id: expected"),
        (
            lambda d: d["annotations"][0].update(bbox=[1, 2, "3", 4]),
            r"annotations\[0\]: bbox: expected x, y, width",
        ),
        (lambda d: d["annotations"][0].update(bbox=[1, 2, float("nan"), 4]), r"bbox: expected x, y, width"),
        (lambda d: d["annotations"][0].pop("bbox"), r"annotations\[0\]: the key bbox is missing"),
        (lambda d: d["categories"].append({"id": 7, "name": "cow"}), "categories: id 7 is listed twice"),
        (lambda d: d["categories"].append({"id": 8, "name": "cat"}), "classes: 'cat' is listed twice"),
        (lambda d: d["categories"].append({"id": 8, "name": "two\nlines"}), "classes: expected a list of names"),
        (lambda d: d["categories"].append("cow"), r"categories\[3\]: the key id is missing"),
        (lambda d: d["images"].append(d["images"][0]), "images: id 42 is listed twice"),
        (lambda d: d["images"][0].update(width="60"), "image 42: width and height: expected"),
        (lambda d: d["images"][0].update(file_name="../a.jpg"), "file_name '../a.jpg': expected a file relative"),
        (lambda d: d.update(images={}), "images: expected a list"),
        (lambda d: d.update(images=[], annotations=[]), "holds no image"),
    ],
)
def test_a_malformed_file_is_one_line(tmp_path, change, message):
    document = copy.deepcopy(DOCUMENT)
    change(document)
    path = tmp_path / "train.json"
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match=message) as caught:
        read_annotations(path)
    assert "\n" not in str(caught.value)
