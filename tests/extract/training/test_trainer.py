import json
import shutil

import pytest
import torch

from data_tools.errors import InputError, UsageError
from extract.command_line import require_gpus
from extract.config import with_values
from extract.training.data import load_detection_split
from extract.training.trainer import train_detector, train_on_gpus


def changed(cfg, **solver):
    copy = with_values(cfg, device="cpu").clone()
    copy.defrost()
    for key, value in solver.items():
        copy.SOLVER[key] = value
    return copy


def test_a_complaint_of_a_process_comes_back_as_one_line(scenes, scenes_config, tmp_path):
    cfg = changed(scenes_config, MAX_ITER=1)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 5
    cfg.freeze()
    with pytest.raises(InputError, match="NUM_CLASSES is 5 and the data set has 4") as caught:
        train_on_gpus(2, cfg, scenes, tmp_path / "run", False, None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
def test_many_gpus_go_with_no_single_device(device):
    with pytest.raises(UsageError, match=f"--gpus 2 goes with --device auto or cuda, not {device}"):
        require_gpus(2, device)


def test_a_batch_that_cannot_be_divided(scenes, scenes_config, tmp_path):
    with pytest.raises(UsageError, match="IMS_PER_BATCH is 4, which --gpus 3 does not divide"):
        train_on_gpus(3, scenes_config, scenes, tmp_path / "run", False, None)


def test_an_unreadable_image_in_a_loaders_worker_is_one_line(scenes, scenes_config, tmp_path):
    shutil.copytree(scenes, tmp_path / "data")
    for path in (tmp_path / "data" / "images").iterdir():
        path.write_text("no picture")
    cfg = changed(scenes_config, MAX_ITER=1)
    cfg.DATALOADER.NUM_WORKERS = 1
    cfg.freeze()
    with pytest.raises(InputError, match=r"scenes_\d+\.jpg: cannot identify image file") as caught:
        train_detector(cfg, load_detection_split(tmp_path / "data", "train"), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_measuring_does_not_change_training(scenes, scenes_config, tmp_path):
    split, validation = (load_detection_split(scenes, name) for name in ("train", "dev"))
    states = []
    for name, period, measured in (("plain", 0, None), ("measured", 1, validation)):
        cfg = changed(scenes_config, MAX_ITER=2, WARMUP_ITERS=1)
        cfg.TEST.EVAL_PERIOD = period
        cfg.freeze()
        weights = train_detector(cfg, split, tmp_path / name, validation=measured)
        states.append(torch.load(weights, weights_only=True)["model"])
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    lines = [json.loads(line) for line in (tmp_path / "measured" / "metrics.json").read_text().splitlines()]
    assert {"ap50", "weighted_ap50", "attribute_ap"} <= lines[-1].keys()
    assert not (tmp_path / "plain" / "detections.html").exists()
    with pytest.raises(UsageError, match="EVAL_PERIOD is 1 and there are no validation images"):
        train_detector(cfg, split, tmp_path / "new")


@pytest.mark.gpu
def test_two_gpus_train_together(scenes, scenes_config, tmp_path):
    import torch

    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    cfg = with_values(changed(scenes_config, MAX_ITER=3, WARMUP_ITERS=1), device="cuda")
    assert train_on_gpus(2, cfg, scenes, tmp_path / "run", False, None).is_file()
