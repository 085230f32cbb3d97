import numpy as np
import pytest

from data_tools.errors import InputError
from extract.detection_data import DetectionSplit, load_detection_split
from extract.evaluation import average_precisions, evaluate_detector


def split_of(*images):
    """Each image is a list of (class, x1, y1, x2, y2)."""
    records = [
        {"annotations": [{"category_id": c, "bbox": list(box), "attribute_ids": []} for c, *box in objects]}
        for objects in images
    ]
    return DetectionSplit(["cat", "dog"], [], records)


def detection(image, label, box, score):
    x1, y1, x2, y2 = box
    return {"image_id": image, "category_id": label, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}


def test_precision_is_that_of_the_ranked_detections():
    split = split_of([(0, 0, 0, 10, 10), (0, 50, 50, 60, 60)], [(1, 0, 0, 10, 10)])
    detections = [
        detection(0, 0, (0, 0, 10, 10), 0.9),  # right
        detection(1, 0, (80, 80, 90, 90), 0.8),  # wrong
        detection(0, 0, (50, 50, 60, 59), 0.7),  # right: IoU 0.9
        detection(0, 0, (51, 51, 60, 60), 0.6),  # found already
        detection(1, 1, (0, 0, 10, 4), 0.9),  # IoU 0.4
    ]
    # Precision is 1 up to half of the cats and 2/3 from there: 51 of COCO's 101 recall levels and 50.
    assert average_precisions(split, detections) == pytest.approx([(51 * 1 + 50 * 2 / 3) / 101, 0.0])


def test_a_class_without_objects_does_not_count():
    split = split_of([(0, 0, 0, 10, 10)])
    assert average_precisions(split, [detection(0, 0, (0, 0, 10, 10), 0.5)]) == pytest.approx([1.0, -1.0])
    assert average_precisions(split, []) == [0.0, -1.0]


def test_perfect_outputs_score_one(scenes, detector, monkeypatch):
    split = load_detection_split(scenes, "test")
    monkeypatch.setattr("extract.evaluation._coco_results", lambda number, instances: truth(split, number))
    monkeypatch.setattr("extract.evaluation._attribute_hits", lambda *arguments: (3, 4))
    scores = evaluate_detector(detector, split)
    assert scores.ap50 == pytest.approx(1.0)
    assert scores.attribute_accuracy == pytest.approx(0.75)


def test_an_unreadable_image_is_one_line(scenes, detector, tmp_path):
    split = load_detection_split(scenes, "test")
    (tmp_path / "a.jpg").touch()
    broken = DetectionSplit(
        split.classes, split.attributes, [{**split.records[0], "file_name": tmp_path / "a.jpg"}]
    )
    with pytest.raises(InputError, match=r"a\.jpg: the file is empty"):
        evaluate_detector(detector, broken)


def truth(split, number):
    return [
        detection(number, annotation["category_id"], annotation["bbox"], 0.9)
        for annotation in split.records[number]["annotations"]
    ]


def test_an_untrained_detector_guesses_attributes(scenes, detector):
    scores = evaluate_detector(detector, load_detection_split(scenes, "test"))
    assert 0 <= scores.attribute_accuracy < 0.7
    assert scores.ap50 < 0.5
    assert set(scores.ap50_by_class) == {"circle", "square", "triangle", "star"}
    assert np.isfinite(scores.ap50)
