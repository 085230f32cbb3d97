"""CxC and ECCV Caption metrics on the package's own ids."""

import numpy as np
import pytest
import torch

from chan.evaluation.coco_metrics import CocoTest, _best
from data_tools.captions.splits import Split
from data_tools.errors import InputError

eccv_caption = pytest.importorskip("eccv_caption", reason="eccv-caption is not installed")


@pytest.fixture(scope="module")
def testall() -> Split:
    """COCO's testall, without the words."""
    metrics = eccv_caption.Metrics()
    owners = [str(metrics.coco_gts["t2i"][caption][0]) for caption in metrics.coco_ids.tolist()]
    ids = list(dict.fromkeys(owners))
    place = {image: n for n, image in enumerate(ids)}
    return Split("testall", ids, ["a caption"] * len(owners), np.array([place[o] for o in owners]))


@pytest.mark.slow
def test_metrics_by_hand(testall: Split) -> None:
    """Scores that are right for the first images only; recalls counted from the package's lists of answers."""
    coco = CocoTest.from_split(testall)
    images, captions = len(testall.image_ids), len(testall.captions)
    assert (images, captions) == (5000, 25000)
    scores = torch.rand(images, captions, generator=torch.Generator().manual_seed(0))
    own = torch.from_numpy(testall.caption_images)
    known = own < 1000
    scores[own[known], known.nonzero().squeeze(1)] = 2.0
    small = {side: dict(list(answers.items())[:40]) for side, answers in coco.metrics.eccv_gts.items()}
    coco.metrics.eccv_gts = small  # few queries, so that the loop below is short
    found = coco.measure(scores)
    assert found["COCO 5K R@1"]["t2i"] == pytest.approx(20, abs=0.5)
    assert found["COCO 5K R@1"]["i2t"] == pytest.approx(20, abs=0.5)
    place = {caption: n for n, caption in enumerate(coco.captions.tolist())}
    row = {image: n for n, image in enumerate(coco.images.tolist())}
    hits = [coco.captions[int(scores[row[image]].argmax())] in answers for image, answers in small["i2t"].items()]
    assert found["ECCV R@1"]["i2t"] == pytest.approx(100 * np.mean(hits))
    hits = [
        coco.images[int(scores[:, place[caption]].argmax())] in answers
        for caption, answers in small["t2i"].items()
    ]
    assert found["ECCV R@1"]["t2i"] == pytest.approx(100 * np.mean(hits))
    assert found["CxC R@1"]["i2t"] >= found["COCO 5K R@1"]["i2t"] - 1e-9


def test_ties_and_nan_count_against_the_model() -> None:
    scores = np.array([0.5, 0.5, np.nan, 0.9, np.nan, 0.1])
    assert _best(scores, [0, 4]).tolist() == [2, 3, 1, 0, 5, 4]


def test_other_splits_are_refused(testall: Split) -> None:
    with pytest.raises(InputError, match="has 5 captions; COCO's testall has 25000"):
        CocoTest.from_split(Split("test", ["1"], ["x"] * 5, np.zeros(5, dtype=np.int64)))
    turned = Split("testall", testall.image_ids[::-1], testall.captions, testall.caption_images)
    with pytest.raises(InputError, match="caption 1 is of image"):
        CocoTest.from_split(turned)


def test_a_constant_score_never_looks_good(testall: Split) -> None:
    metrics = CocoTest.from_split(testall).metrics
    small = {"i2t": {1: [11, 12], 2: [13]}, "t2i": {11: [1], 12: [1], 13: [2]}}
    metrics.coco_gts = metrics.cxc_gts = metrics.eccv_gts = small
    coco = CocoTest(metrics, np.array([1, 2]), np.array([11, 12, 13]))
    constant = coco.measure(torch.zeros(2, 3))
    assert (constant["CxC R@1"], constant["ECCV mAP@R"]["t2i"]) == ({"i2t": 0.0, "t2i": 0.0}, 0.0)
    right = torch.tensor([[0.9, 0.1, 0.5], [0.0, 0.2, 0.8]])
    found = coco.measure(right)
    assert found["COCO 5K R@1"] == {"i2t": 100.0, "t2i": pytest.approx(200 / 3)}
    assert found["ECCV R-Precision"]["i2t"] == pytest.approx(75.0)  # of two answers to image 1 one is second
