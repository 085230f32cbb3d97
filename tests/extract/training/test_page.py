import html.parser
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from data_tools.images.decoding import read_image
from extract.training.data import DetectionSplit, load_detection_split
from extract.training.page import compare_objects, write_page


class Page(html.parser.HTMLParser):
    """The pictures of a page and its text; fails on an element that is not closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.pictures, self.text, self.scripts = [], [], [], 0
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.scripts += tag == "script"
        if tag == "img":
            self.pictures.append(dict(attrs))
        elif tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def finding(monkeypatch, detector, *found):
    """Let a detector find these (class, score, box)."""
    instances = Instances((160, 160))
    instances.pred_classes = torch.tensor([label for label, _, _ in found], dtype=torch.long)
    instances.scores = torch.tensor([score for _, score, _ in found])
    instances.pred_boxes = Boxes(torch.tensor([box for _, _, box in found]).reshape(-1, 4))
    monkeypatch.setattr(detector, "detect", lambda image, geometry: instances)


def test_each_object_is_found_once(scenes, detector, monkeypatch):
    split = load_detection_split(scenes, "test")
    record = next(record for record in split.records if len(record["annotations"]) > 1)
    first, second = ((a["category_id"], a["bbox"]) for a in record["annotations"][:2])
    image = read_image(Path(record["file_name"]))
    wrong = (first[0], [0.0, 0.0, 3.0, 3.0])
    finding(monkeypatch, detector, (first[0], 0.6, first[1]), (*_scored(first, 0.9),), _scored(wrong, 0.8),
            _scored(second, 0.4))  # fmt: skip
    detected, annotated = compare_objects(detector, split, record, image)
    assert [name.split()[-1] for name in detected.names] == ["0.90", "0.80", "0.60"]  # 0.4 is not shown
    assert [name.split()[-2] for name in detected.names] == [split.classes[first[0]]] * 3
    assert detected.right == [True, False, False]  # the second of the same object is wrong
    assert annotated.right == [True] + [False] * (len(record["annotations"]) - 1)
    np.testing.assert_allclose(detected.boxes[1], wrong[1])
    own = [split.attributes[n] for n in record["annotations"][0]["attribute_ids"]]
    assert annotated.names[0] == " ".join([*own, split.classes[first[0]]])


def _scored(item, score):
    label, box = item
    return label, score, box


def test_the_page_has_two_pictures_of_each_image_and_no_script(scenes, detector, tmp_path, monkeypatch):
    split = load_detection_split(scenes, "test")
    records = [{**split.records[0], "image_id": "<script>1</script>"}, {**split.records[1], "annotations": []}]
    finding(monkeypatch, detector)
    write_page(tmp_path / "page.html", detector, DetectionSplit(split.classes, split.attributes, records))
    page = Page((tmp_path / "page.html").read_text())
    assert len(page.pictures) == 4
    assert all(picture["src"].startswith("data:image/jpeg;base64,") for picture in page.pictures)
    assert page.scripts == 0
    assert f"<script>1</script>: {Path(records[0]['file_name']).name}" in page.text  # as text
    assert "0 annotated objects, 0 of them found" in page.text


@pytest.mark.parametrize("count", [1, 8, 9, 30])
def test_at_most_eight_images_are_shown(scenes, detector, tmp_path, monkeypatch, count):
    split = load_detection_split(scenes, "test")
    shown = []

    def section(detector, split, row):
        shown.append(row)
        return ""

    monkeypatch.setattr("extract.training.page._section", section)
    write_page(tmp_path / "page.html", detector, DetectionSplit(["a"], [], split.records[:1] * count))
    assert shown[0] == 0
    assert shown[-1] == count - 1
    assert len(set(shown)) == len(shown) == min(count, 8)
