import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from data_tools.errors import InputError
from extract.training.data import DetectionSplit, load_detection_split
from extract.training.evaluation import attribute_accuracy, evaluate_detector, image_result, score


def detections(*found):
    """Detections (class, score, x1, y1, x2, y2) of an image."""
    instances = Instances((100, 100))
    table = torch.tensor(found, dtype=torch.float32).reshape(-1, 6)
    instances.pred_classes = table[:, 0].long()
    instances.scores = table[:, 1]
    instances.pred_boxes = Boxes(table[:, 2:])
    return instances


def result(annotations, found, attribute_scores):
    boxes = np.array([a["bbox"] for a in annotations], dtype=np.float32).reshape(-1, 4)
    return image_result(annotations, boxes, detections(*found), np.array(attribute_scores, dtype=np.float32))


def thing(label, box, attributes):
    return {"category_id": label, "bbox": list(box), "attribute_ids": attributes}


def test_the_figures_of_two_images():
    split = DetectionSplit(["cat", "dog", "cow"], ["red", "big", "old"], [])
    cat, dog, other = (0, 0, 10, 10), (50, 50, 60, 60), (20, 20, 40, 40)
    first = result(
        [thing(0, cat, [0, 1]), thing(1, dog, [1])],
        [(0, 0.9, *cat), (1, 0.3, *dog), (1, 0.8, *other)],
        [[0.6, 0.3, 0.1], [0.7, 0.2, 0.1]],
    )
    second = result([thing(0, other, [])], [(0, 0.5, *other)], [[0.2, 0.1, 0.7]])
    scores = score(split, [first, second])
    assert scores.ap50_by_class == pytest.approx({"cat": 1.0, "dog": 0.5, "cow": 0.0})
    assert scores.ap50 == pytest.approx(1.5 / 3)
    assert scores.weighted_ap50 == pytest.approx((2 * 1.0 + 1 * 0.5) / 3)
    assert scores.absent_classes == 1
    # Red ranks the dog before the cat that has it; big ranks the two that have it first.
    assert scores.attribute_ap_by_name == pytest.approx({"red": 0.5, "big": 1.0, "old": 0.0})
    assert scores.attribute_ap == pytest.approx(1.5 / 3)
    assert scores.weighted_attribute_ap == pytest.approx((1 * 0.5 + 2 * 1.0) / 3)
    assert scores.absent_attributes == 1
    assert scores.attribute_accuracy == pytest.approx(2 / 3)  # red and big of the cat, not big of the dog
    assert "1 of 3 classes have no annotated object;" in scores.as_text()


def test_an_image_without_detections_or_objects():
    split = DetectionSplit(["cat"], ["red"], [])
    box = (0, 0, 10, 10)
    nothing_found = result([thing(0, box, [0])], [], [[0.5]])
    nothing_there = result([], [(0, 0.9, *box)], np.zeros((0, 1)))
    assert score(split, [nothing_found, nothing_there]).ap50 == 0
    assert score(split, [nothing_there]).weighted_ap50 == 0


def test_accuracy_is_that_of_a_loop():
    rng = np.random.default_rng(0)
    scores, wanted = rng.random((30, 7)), rng.random((30, 7)) < 0.3
    hits = 0
    for row, truth in zip(scores.tolist(), wanted.tolist(), strict=True):
        ranked = sorted(range(7), key=lambda number: -row[number])
        hits += sum(truth[number] for number in ranked[: sum(truth)])
    assert attribute_accuracy(scores, wanted) == pytest.approx(hits / wanted.sum())


def test_perfect_outputs_score_one(scenes, detector, monkeypatch):
    split = load_detection_split(scenes, "test")
    records = iter(split.records)

    def perfect(detector, image, objects):
        annotations = next(records)["annotations"]
        found = [(a["category_id"], 0.9, *a["bbox"]) for a in annotations]
        attributes = np.zeros((len(annotations), 13), dtype=np.float32)
        for row, annotation in zip(attributes, annotations, strict=True):
            row[annotation["attribute_ids"]] = 1
        return detections(*found), attributes

    monkeypatch.setattr("extract.training.evaluation._predict", perfect)
    scores = evaluate_detector(detector, split)
    present = {a["category_id"] for record in split.records for a in record["annotations"]}
    assert scores.ap50 == pytest.approx(len(present) / 4)
    assert scores.weighted_ap50 == pytest.approx(1)
    assert scores.weighted_attribute_ap == pytest.approx(1)
    assert scores.attribute_accuracy == pytest.approx(1)


def test_an_unreadable_image_is_one_line(scenes, detector, tmp_path):
    split = load_detection_split(scenes, "test")
    (tmp_path / "a.jpg").touch()
    broken = DetectionSplit(
        split.classes, split.attributes, [{**split.records[0], "file_name": tmp_path / "a.jpg"}]
    )
    with pytest.raises(InputError, match=r"a\.jpg: cannot be read: the file is empty"):
        evaluate_detector(detector, broken)


def test_an_untrained_detector_guesses_attributes(scenes, detector):
    scores = evaluate_detector(detector, load_detection_split(scenes, "test"))
    assert scores.attribute_accuracy < 0.7
    assert scores.ap50 < 0.5
    assert set(scores.ap50_by_class) == {"circle", "square", "triangle", "star"}
    assert np.isfinite(scores.ap50)
