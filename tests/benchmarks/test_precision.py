"""What the comparison of precisions reports, where the answer is known."""

import numpy as np
import torch
from PIL import Image

from benchmarks.precision import compare
from extract.build import build_detector
from extract.choices import Rule
from extract.config import load_config, with_values
from extract.regions.selection import build_selection


def test_a_detector_has_its_own_regions_and_another_one_has_not(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    cfg, cpu = load_config("scenes"), torch.device("cpu")
    exact, same, other = (build_detector(with_values(cfg, seed=seed), None, cpu) for seed in (1, 1, 2))
    selection = build_selection(Rule.CAFFE, (9, 9), inclusive=False)
    nothing = {"error_mean": 0.0, "error_most": 0.0, "same_regions": 1.0}
    assert compare(exact, same, [tmp_path / "a.png"], selection) == nothing
    found = compare(exact, other, [tmp_path / "a.png"], selection)
    assert found["error_mean"] > 0.1
    assert found["same_regions"] < 0.5
