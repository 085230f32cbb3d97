"""A resumed training reads a checkpoint of its own folder as data, in full or not at all."""

import math
import os
import pickle
import shutil

import pytest
import torch

from data_tools.errors import InputError
from extract.config import with_values
from extract.training.checkpoints import last_checkpoint
from extract.training.data import load_detection_split
from extract.training.trainer import train_detector


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def configuration(scenes_config, iterations):
    cfg = with_values(scenes_config, device="cpu").clone()
    cfg.defrost()
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.CHECKPOINT_PERIOD = iterations, 1, 2
    cfg.freeze()
    return cfg


@pytest.fixture(scope="module")
def split(scenes):
    return load_detection_split(scenes, "train")


@pytest.fixture(scope="module")
def whole(scenes_config, split, tmp_path_factory):
    """A finished run of four iterations with checkpoints after two and four."""
    folder = tmp_path_factory.mktemp("detector") / "run"
    train_detector(configuration(scenes_config, 4), split, folder)
    return folder


@pytest.fixture
def stopped(whole, tmp_path):
    """The same run, stopped after two iterations."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.yaml", "model_0000001.pth"):
        shutil.copy(whole / name, folder / name)
    (folder / "last_checkpoint").write_text("model_0000001.pth")
    return folder


def resume(scenes_config, split, folder):
    return train_detector(configuration(scenes_config, 4), split, folder, resume=True)


def test_a_resumed_run_takes_the_remaining_iterations(scenes_config, split, whole, stopped):
    final = resume(scenes_config, split, stopped)
    assert "Starting training from iteration 2" in (stopped / "log.txt").read_text()
    expected, found = (torch.load(path, weights_only=True)["trainer"] for path in (whole / final.name, final))
    assert found["iteration"] == expected["iteration"] == 3
    assert found["hooks"] == expected["hooks"]
    own, theirs = (state["_trainer"]["optimizer"] for state in (found, expected))
    assert {int(moments["step"]) for moments in own["state"].values()} == {4}
    assert own["param_groups"] == theirs["param_groups"]


def test_a_pickle_is_not_run(scenes_config, split, stopped, tmp_path):
    mark = tmp_path / "mark"
    for name in ("model.pkl", "model.pth"):
        (stopped / name).write_bytes(pickle.dumps({"model": Evil(mark)}))
        (stopped / "last_checkpoint").write_text(name)
        with pytest.raises(InputError) as raised:
            resume(scenes_config, split, stopped)
        assert "\n" not in str(raised.value)
        assert not mark.exists()


@pytest.mark.parametrize(
    "name",
    [
        "../model_0000001.pth",
        "/etc/passwd",
        "http://x.example/a.pth",
        "catalog://a.pth",
        "",
        ".",
        "a.pth\nb.pth",
        "no.pth",
    ],
)
def test_a_name_that_leads_elsewhere_is_refused(stopped, name):
    shutil.copy(stopped / "model_0000001.pth", stopped.parent / "model_0000001.pth")
    (stopped / "last_checkpoint").write_text(name)
    with pytest.raises(InputError, match="last_checkpoint"):
        last_checkpoint(stopped)


def test_a_link_to_elsewhere_is_refused(stopped):
    shutil.move(stopped / "model_0000001.pth", stopped.parent / "elsewhere.pth")
    (stopped / "model_0000001.pth").symlink_to(stopped.parent / "elsewhere.pth")
    with pytest.raises(InputError, match="last_checkpoint"):
        last_checkpoint(stopped)


CHANGES = {
    "nothing fits": lambda c: c.update(model={"a": torch.zeros(1)}),
    "one weight is missing": lambda c: c["model"].popitem(),
    "a weight of another shape": lambda c: c["model"].update({next(iter(c["model"])): torch.zeros(1)}),
    "a weight is NaN": lambda c: next(iter(c["model"].values())).fill_(math.nan),
    "no trainer": lambda c: c.pop("trainer"),
    "an iteration as text": lambda c: c["trainer"].update(iteration="1"),
    "an iteration beyond the end": lambda c: c["trainer"].update(iteration=10**12),
    "a negative iteration": lambda c: c["trainer"].update(iteration=-3),
    "two iterations": lambda c: c["trainer"]["_trainer"].update(iteration=3),
    "a short moment": lambda c: c["trainer"]["_trainer"]["optimizer"]["state"][0].update(exp_avg=torch.zeros(3)),
    "another schedule": lambda c: c["trainer"]["hooks"]["LRScheduler"].update(base_lrs=[math.inf]),
    "hooks of another kind": lambda c: c["trainer"].update(hooks=[]),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_checkpoint_that_does_not_fit_is_one_line(scenes_config, split, stopped, change):
    path = stopped / "model_0000001.pth"
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    with pytest.raises(InputError, match=r"model_0000001\.pth: ") as raised:
        resume(scenes_config, split, stopped)
    assert "\n" not in str(raised.value)


def test_a_training_that_diverges_is_one_line_and_keeps_its_checkpoints(scenes_config, split, tmp_path):
    cfg = configuration(scenes_config, 30).clone()
    cfg.defrost()
    cfg.SOLVER.OPTIMIZER, cfg.SOLVER.BASE_LR = "SGD", 1e30
    cfg.freeze()
    with pytest.raises(InputError, match=r"no longer a finite number.*BASE_LR") as raised:
        train_detector(cfg, split, tmp_path / "run")
    assert "\n" not in str(raised.value)
    assert "FloatingPointError" in (tmp_path / "run" / "log.txt").read_text()
