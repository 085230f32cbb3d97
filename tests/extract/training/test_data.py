import dataclasses
import json
import shutil

import pytest
import torch
from detectron2.structures import BoxMode

from data_tools.errors import InputError
from extract.config import load_config
from extract.training.data import AttributeMapper, check_labels, check_names, load_detection_split


def test_scenes_become_dataset_dicts(scenes):
    split = load_detection_split(scenes, "test")
    written = json.loads((scenes / "annotations" / "test.json").read_text())
    assert split.classes == written["classes"]
    assert len(split.records) == 3
    for record, source in zip(split.records, written["images"], strict=True):
        assert record["file_name"] == str(scenes / "images" / source["file_name"])
        assert record["image_id"] == source["image_id"]
        assert (record["height"], record["width"]) == (160, 160)
        expected = [{**item, "bbox_mode": BoxMode.XYXY_ABS} for item in source["annotations"]]
        assert record["annotations"] == expected


def test_the_mapper_keeps_each_objects_attributes_beside_its_box(scenes, scenes_config):
    record = load_detection_split(scenes, "train").records[0]
    mapped = AttributeMapper(scenes_config)(record)
    instances = mapped["instances"]
    assert mapped["image"].shape[0] == 3
    flipped = not torch.allclose(
        instances.gt_boxes.tensor[:, 0] * 160 / mapped["image"].shape[2],
        torch.tensor([a["bbox"][0] for a in record["annotations"]]),
        atol=0.5,
    )
    scale = mapped["image"].shape[2] / 160
    for row, annotation in enumerate(record["annotations"]):
        x1, y1, x2, y2 = annotation["bbox"]
        expected = torch.tensor([160 - x2, y1, 160 - x1, y2] if flipped else [x1, y1, x2, y2]) * scale
        torch.testing.assert_close(instances.gt_boxes.tensor[row], expected, atol=0.01, rtol=0)
        assert instances.gt_attributes[row].nonzero().flatten().tolist() == annotation["attribute_ids"]
        assert instances.gt_classes[row] == annotation["category_id"]


def broken(scenes, tmp_path, change):
    document = json.loads((scenes / "annotations" / "test.json").read_text())
    change(document)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "images").symlink_to(scenes / "images")
    (tmp_path / "annotations" / "test.json").write_text(json.dumps(document))
    return tmp_path


def annotation(document):
    return document["images"][1]["annotations"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("classes"), r"test\.json: the key classes is missing"),
        (lambda d: annotation(d).update(category_id=4), r"annotations\[0\]: category_id 4: expected 0 to 3"),
        (lambda d: d["images"][0].update(file_name="absent.jpg"), "file_name absent.jpg: no such file in"),
        (lambda d: d["images"][0].update(file_name="."), "file_name '.': expected a file relative to"),
    ],
)
def test_malformed_annotations_are_refused(scenes, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        load_detection_split(broken(scenes, tmp_path, change), "test")


def test_the_names_must_be_the_configurations(scenes, scenes_config):
    split = load_detection_split(scenes, "test")
    check_names(scenes_config, split)
    renamed = dataclasses.replace(split, attributes=[*split.attributes[:-1], "spotted"])
    with pytest.raises(InputError, match="attributes are not the configuration's: number 12 is 'spotted'"):
        check_names(scenes_config, renamed)


def test_a_file_may_lie_in_the_folder_of_its_split(scenes, tmp_path):
    shutil.copytree(scenes / "annotations", tmp_path / "annotations")
    shutil.copytree(scenes / "images", tmp_path / "images" / "test")
    [record, *_] = load_detection_split(tmp_path, "test").records
    assert record["file_name"].startswith(str(tmp_path / "images" / "test"))
    with pytest.raises(InputError, match="no such file in"):
        load_detection_split(tmp_path, "train")


def test_the_configuration_must_have_the_datas_classes(scenes, scenes_config):
    split = load_detection_split(scenes, "test")
    check_labels(scenes_config, split)
    with pytest.raises(InputError, match="NUM_CLASSES is 1600 and the data set has 4: circle, square"):
        check_labels(load_config("butd_r101_airsplay"), split)
