"""CxC within images and within captions, on a small test set of its own."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from chan.evaluation.coco_metrics import CocoTest
from chan.evaluation.cxc import SimilarItems, rank
from chan.packing import pack
from chan.scoring.pairwise import Scorer
from data_tools.captions.splits import Split
from data_tools.errors import InputError

IMAGE_IDS, CAPTION_IDS = [391895, 42, 7, 9], [100, 101, 102, 103, 104, 105]
OWNERS = [0, 0, 1, 2, 2, 3]
SPLIT = Split("testall", [str(n) for n in IMAGE_IDS], ["a caption"] * 6, np.array(OWNERS))
COCO = CocoTest(None, np.array(IMAGE_IDS), np.array(CAPTION_IDS))


def image(number: int) -> str:
    return f"COCO_val2014_{number:012}.jpg"


def caption(number: int) -> str:
    return f"COCO_val2014:sentid:{number}"


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """Pairs in either order; what is less similar than 2.5 (images) or 3 (captions) is no answer."""
    pairs = [(391895, 42, 2.5), (7, 391895, 4.0), (42, 7, 2.49), (9, 9, 5.0)]
    lines = [f"{image(a)},{image(b)},{score},i2i_csim" for a, b, score in pairs]
    (tmp_path / "sis_test.csv").write_text("\n".join(["image1,image2,agg_score,sampling_method", *lines]) + "\n")
    pairs = [(100, 102, 3.0), (105, 103, 2.99), (101, 100, 1.0)]
    lines = [f"{caption(a)},{caption(b)},{score},c2c_isim" for a, b, score in pairs]
    (tmp_path / "sts_test.csv").write_text("\n".join(["caption1,caption2,agg_score,method", *lines]) + "\n")
    return tmp_path


def test_the_right_answers(published: Path) -> None:
    similar = SimilarItems.read(published, SPLIT, COCO)
    assert [found.tolist() for found in similar.images] == [[1, 2], [0], [0], []]
    assert [found.tolist() for found in similar.captions] == [[1, 2], [0], [0], [4], [3], []]


def test_ranks_equal_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chan.evaluation.cxc.QUERIES", 7)
    random = np.random.default_rng(0)
    scores = random.integers(0, 12, (40, 40)).astype(float)  # with many ties
    scores[random.random((40, 40)) < 0.05] = np.nan
    answers = [
        np.array(sorted({int(n) for n in random.integers(0, 40, random.integers(0, 4))} - {query}), dtype=np.int64)
        for query in range(40)
    ]
    expected = []
    for query, right in enumerate(answers):
        if not len(right):
            continue
        known = [scores[place, query] for place in right if not np.isnan(scores[place, query])]
        wrong = [place for place in range(40) if place != query and place not in right]
        expected.append(sum(not known or not scores[place, query] < max(known) for place in wrong))
    found = rank(answers, lambda places: torch.from_numpy(scores)[:, places])
    assert found.tolist() == expected
    assert len(set(expected)) > 5


@pytest.mark.parametrize("coding", ["vha", "tha", "t2i", "i2t"])
def test_items_of_several_rows_are_compared_by_the_score_of_the_model(coding: str, published: Path) -> None:
    random = torch.Generator().manual_seed(1)
    regions = pack([torch.randn(n, 8, generator=random) for n in (3, 5, 2, 4)])
    words = pack([torch.randn(n, 8, generator=random) for n in (4, 3, 6, 2, 5, 3)])
    scorer = Scorer.from_names(coding, "mean", 0.1, 0.1)
    model = SimpleNamespace(score=lambda images, captions, precision: scorer(images, captions))
    found = SimilarItems.read(published, SPLIT, COCO).measure(model, regions, words, "fp32")  # type: ignore[arg-type]
    assert set(found) == {"CxC R@1", "CxC R@5", "CxC R@10"}
    for side, items, answers in (
        ("i2i", regions, {0: [1, 2], 1: [0], 2: [0]}),
        ("t2t", words, {0: [1, 2], 1: [0], 2: [0], 3: [4], 4: [3]}),
    ):
        table = scorer(items, items)  # candidates x queries
        hits = []
        for query, right in answers.items():
            order = [place for place in table[:, query].argsort(descending=True).tolist() if place != query]
            hits.append(order[0] in right)
        assert found["CxC R@1"][side] == pytest.approx(100 * np.mean(hits))
        assert found["CxC R@10"][side] == 100.0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"{image(42)},{image(8)},3.0,i2i_csim", "line 2: expected two items of COCO's test set"),
        (f"{image(42)},{image(7)},nan,i2i_csim", "line 2: expected a score, found nan"),
        (f"{image(42)},{image(7)},high,i2i_csim", "not a table of pairs and scores"),
        (f"{image(42)},{image(7)}", "line 2: expected two items"),
        ("\x00", "sis_test.csv"),
    ],
)
def test_other_files_are_refused(line: str, message: str, published: Path) -> None:
    (published / "sis_test.csv").write_text(f"image1,image2,agg_score,sampling_method\n{line}\n")
    with pytest.raises(InputError, match=message) as error:
        SimilarItems.read(published, SPLIT, COCO)
    assert "\n" not in str(error.value)
    (published / "sis_test.csv").unlink()
    with pytest.raises(InputError, match="sis_test"):
        SimilarItems.read(published, SPLIT, COCO)
