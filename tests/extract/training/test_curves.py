import json

import numpy as np
import pytest
from PIL import Image

from data_tools.errors import InputError
from extract.training.curves import draw_curves, load_curves


def write(folder, lines):
    (folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_repeated_iteration_counts_once(tmp_path):
    losses = [(19, 3.0), (39, 2.0), (59, 9.0), (39, 1.5), (59, 1.0)]  # resumed after 39
    write(tmp_path, [{"iteration": n, "total_loss": loss, "lr": 0.1} for n, loss in losses])
    assert load_curves(tmp_path / "metrics.json") == {"total_loss": ([20, 40, 60], [3.0, 1.5, 1.0])}


def test_precisions_have_a_diagram_where_there_are_any(tmp_path):
    line = {"iteration": 19, "total_loss": 2.0, "loss_cls": 1.0}
    write(tmp_path, [line])
    with Image.open(draw_curves(tmp_path)) as alone:
        width = alone.width
    write(tmp_path, [line, {**line, "iteration": 39, "ap50": 0.5}])
    with Image.open(draw_curves(tmp_path)) as both:
        assert both.width == 2 * width
        right = np.asarray(both.convert("RGB"))[:, width:]
    assert len(np.unique(right.reshape(-1, 3), axis=0)) > 10


@pytest.mark.parametrize("text", ["[1]\n", '{"total_loss": 1}\n', '{"iteration": 1, "ap50": "x"}\n', "{"])
def test_damaged_metrics_are_one_line(tmp_path, text):
    (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(InputError, match=r"metrics\.json: not lines of metrics"):
        load_curves(tmp_path / "metrics.json")
