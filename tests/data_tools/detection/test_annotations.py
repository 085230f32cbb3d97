import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.detection.annotations import AnnotatedImage, AnnotatedObject, read_annotations, write_annotations
from data_tools.detection.labels import Labels
from data_tools.errors import InputError

LABELS = Labels(["dog", "cat"], ["white", "tall", "gray"], {"dog": ["hound"]})


def test_the_written_json_is_the_documented_schema(tmp_path):
    item = AnnotatedObject((1.0, 2.5, 30.0, 40.0), 1, (0, 2))
    images = [AnnotatedImage("a/1.jpg", "1", 80, 100, (item,)), AnnotatedImage("2.jpg", 2, 8, 9, ())]
    write_annotations(tmp_path / "annotations" / "train.json", LABELS, images)
    assert (tmp_path / "annotations" / "train.json").read_text() == (
        '{"classes": ["dog", "cat"], "attributes": ["white", "tall", "gray"], "images": ['
        '{"file_name": "a/1.jpg", "image_id": "1", "height": 80, "width": 100, "annotations": ['
        '{"bbox": [1.0, 2.5, 30.0, 40.0], "category_id": 1, "attribute_ids": [0, 2]}]}, '
        '{"file_name": "2.jpg", "image_id": 2, "height": 8, "width": 9, "annotations": []}]}\n'
    )


edges = st.floats(-10, 1000, allow_nan=False)
objects = st.builds(
    lambda x, y, w, h, category, attributes: AnnotatedObject((x, y, x + w, y + h), category, attributes),
    edges,
    edges,
    st.floats(1, 500),
    st.floats(1, 500),
    st.integers(0, 1),
    st.lists(st.integers(0, 2), unique=True).map(tuple),
)
records = st.builds(
    AnnotatedImage,
    st.sampled_from(["a.jpg", "x/é b.png"]),
    st.integers(0, 99) | st.text(st.characters(categories=["L", "N"]), min_size=1),
    st.integers(1, 4000),
    st.integers(1, 4000),
    st.lists(objects, max_size=3).map(tuple),
)


@given(images=st.lists(records, min_size=1, max_size=4))
def test_what_is_written_is_read_again(tmp_path_factory, images):
    path = tmp_path_factory.mktemp("annotations") / "train.json"
    write_annotations(path, LABELS, images)
    found = read_annotations(path)
    assert (found.classes, found.attributes) == (LABELS.classes, LABELS.attributes)
    assert found.images == images


def document():
    item = {"bbox": [1, 2, 30, 40], "category_id": 0, "attribute_ids": [2]}
    image = {"file_name": "1.jpg", "image_id": 7, "height": 80, "width": 100, "annotations": [item, dict(item)]}
    return {"classes": ["dog", "cat"], "attributes": ["white", "tall", "gray"], "images": [image]}


def image(**changes):
    return lambda d: d["images"][0].update(changes)


def item(**changes):
    return lambda d: d["images"][0]["annotations"][1].update(changes)


OBJECT = r"image 7: annotations\[1\]: "


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("classes"), "the key classes is missing"),
        (lambda d: d.update(attributes="white"), "attributes 'white': expected a list"),
        (lambda d: d.update(classes=[1]), "classes: expected a list of names"),
        (lambda d: d["images"].clear(), "holds no image"),
        (lambda d: d.update(images={}), "images {}: expected a list"),
        (lambda d: d["images"].append(3), r"images\[1\]: expected an object, found 3"),
        (lambda d: d["images"][0].pop("image_id"), r"images\[0\]: the key image_id is missing"),
        (image(image_id=[1]), r"images\[0\]: image_id \[1\]: expected printable text"),
        (image(image_id="a\nb"), r"images\[0\]: image_id 'a\\nb': expected printable text"),
        (image(file_name="/etc/passwd"), "image 7: file_name '/etc/passwd': expected a file relative to"),
        (image(file_name="../1.jpg"), r"image 7: file_name '\.\./1\.jpg': expected a file relative to"),
        (image(file_name=3), "image 7: file_name 3: expected a file relative to"),
        (image(height=0), "image 7: height 0: expected a number of pixels"),
        (image(width=True), "image 7: width True: expected a number of pixels"),
        (image(annotations=None), "image 7: annotations None: expected a list"),
        (lambda d: d["images"][0]["annotations"][1].pop("bbox"), OBJECT + "the key bbox is missing"),
        (item(bbox="wide"), OBJECT + "bbox 'wide': expected a list"),
        (item(bbox=[5, 5, 5, 9]), OBJECT + r"bbox \[5, 5, 5, 9\]: expected x1 y1 x2 y2 with x1 < x2"),
        (item(bbox=[5, 9, 6, 5]), OBJECT + "bbox"),
        (item(bbox=[1, 2, 3]), OBJECT + "bbox"),
        (item(bbox=[1, float("nan"), 5, 9]), OBJECT + "bbox"),
        (item(bbox=[1, 2, float("inf"), 9]), OBJECT + "bbox"),
        (item(bbox=[1, 2, 10**400, 9]), OBJECT + "bbox"),
        (item(bbox=[1, 2, "3", 9]), OBJECT + "bbox"),
        (item(category_id=2), OBJECT + "category_id 2: expected 0 to 1"),
        (item(category_id=-1), OBJECT + "category_id -1: expected 0 to 1"),
        (item(category_id=1.0), OBJECT + r"category_id 1\.0: expected 0 to 1"),
        (item(attribute_ids=[0, 3]), OBJECT + r"attribute_ids \[0, 3\]: expected numbers of the 3"),
        (item(attribute_ids=[0.5]), OBJECT + r"attribute_ids \[0\.5\]: expected numbers of the 3"),
        (
            lambda d: d["images"][0]["annotations"].insert(0, None),
            r"image 7: annotations\[0\]: expected an object",
        ),
    ],
)
def test_a_malformed_file_is_one_line_that_names_image_and_key(tmp_path, change, message):
    changed = document()
    change(changed)
    path = tmp_path / "train.json"
    path.write_text(json.dumps(changed))
    with pytest.raises(InputError, match=message) as caught:
        read_annotations(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_other_keys_are_ignored_and_numbers_become_floats(tmp_path):
    changed = document()
    changed["info"] = {"year": 2026}
    image(coco_id=5)(changed)
    item(bbox_mode=1)(changed)
    (tmp_path / "train.json").write_text(json.dumps(changed))
    (found,) = read_annotations(tmp_path / "train.json").images
    assert found == AnnotatedImage("1.jpg", 7, 80, 100, (AnnotatedObject((1.0, 2.0, 30.0, 40.0), 0, (2,)),) * 2)
