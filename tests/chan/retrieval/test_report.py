import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chan.data.splits import open_split
from chan.evaluation.evaluate import evaluate
from chan.evaluation.recall import matrix_blocks
from chan.retrieval.explanation import Explanation
from chan.retrieval.report import BINS, rank_shares, write_report


@given(st.lists(st.integers(0, 30_000), min_size=1, max_size=50))
def test_every_query_is_in_the_interval_of_its_rank(ranks: list[int]) -> None:
    names, shares = rank_shares(np.array(ranks))
    assert shares.sum() == pytest.approx(100)
    for name, share in zip(names, shares, strict=True):
        first, last = name.rstrip("+").split("-")[0], name.rstrip("+").split("-")[-1]
        inside = [int(first) <= rank + 1 and (name.endswith("+") or rank + 1 <= int(last)) for rank in ranks]
        assert share == pytest.approx(100 * sum(inside) / len(ranks))
    assert names[-1].endswith("+") == (max(ranks) + 1 >= BINS[-1])


class Recorded:
    """Stands for an `Explainer`; notes which captions are drawn."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def of_captions(self, captions: list[int]) -> list[Explanation]:
        self.asked.append(captions)
        return [Explanation(["dog"], [0], [], 1)]


def test_the_report_shows_the_best_and_the_worst_captions(dataset: Path, tmp_path: Path) -> None:
    split = open_split(dataset, "test", None).split
    scores = torch.from_numpy((split.caption_images == np.arange(6)[:, None]).astype(np.float32))
    failing = [3, 11, 12, 20, 21, 22, 28, 29]
    scores[:, failing] *= -1  # these captions rank their image last
    result = evaluate(split, 1, matrix_blocks(scores), seed=0)
    explainer = Recorded()
    write_report(tmp_path / "report", "a run", result, {"rsum": result.recall.rsum}, explainer)  # type: ignore[arg-type]
    best, worst = explainer.asked
    assert best == [0, 1, 2, 4, 5, 6, 7, 8]
    assert sorted(worst) == failing
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert names == {"report.md", "metrics.json", "ranks.png", "best.png", "worst.png"}
    text = (tmp_path / "report" / "report.md").read_text()
    assert f"rsum {result.recall.rsum:.1f} of 600" in text
    assert f"chance: {result.chance.rsum:.1f}" in text
    assert json.loads((tmp_path / "report" / "metrics.json").read_text()) == {"rsum": result.recall.rsum}


def test_without_pictures_the_report_says_why(dataset: Path, tmp_path: Path) -> None:
    split = open_split(dataset, "test", None).split
    result = evaluate(split, 2, matrix_blocks(torch.rand(6, 30)), seed=0)
    write_report(tmp_path, "a run", result, {}, "features.h5: holds no boxes")
    assert not (tmp_path / "best.png").exists()
    assert "No pictures of queries: features.h5: holds no boxes." in (tmp_path / "report.md").read_text()
