from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from chan.training.checkpoints import (
    BEST,
    LAST,
    STATE,
    TrainProgress,
    TrainState,
    load_state,
    load_weights,
    save_epoch,
    save_state,
    save_weights,
)
from data_tools.errors import InputError


def make(inputs: int = 3, seed: int = 0) -> TrainState:
    """A small model after one step of AdamW."""
    torch.manual_seed(seed)
    model = nn.Linear(inputs, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, inputs)).sum().backward()
    optimizer.step()
    return TrainState(model, optimizer, torch.amp.GradScaler("cpu", enabled=False))


def test_a_saved_state_is_restored(tmp_path: Path) -> None:
    saved, other = make(seed=0), make(seed=1)
    progress = TrainProgress(epoch=2, step=9, epoch_step=1, best_rsum=123.5, best_epoch=0)
    save_state(tmp_path, saved, progress)
    assert load_state(tmp_path, other) == progress
    for one, restored in zip(saved.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(one, restored)
        for moment in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(saved.optimizer.state[one][moment], other.optimizer.state[restored][moment])


@pytest.mark.parametrize("best_epoch", [1, 0])
def test_the_best_weights_change_only_with_the_best_epoch(best_epoch: int, tmp_path: Path) -> None:
    first, second = make(seed=0), make(seed=1)
    save_epoch(tmp_path, first, TrainProgress(epoch=1, best_epoch=0))
    save_epoch(tmp_path, second, TrainProgress(epoch=2, best_epoch=best_epoch))
    best, last = load_file(tmp_path / BEST), load_file(tmp_path / LAST)
    assert torch.equal(last["weight"], second.model.state_dict()["weight"])
    assert torch.equal(best["weight"], (second if best_epoch == 1 else first).model.state_dict()["weight"])


@pytest.mark.parametrize("content", [b"", b"no state", b"PK\x03\x04 half of one"])
def test_a_damaged_state_is_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / STATE).write_bytes(content)
    with pytest.raises(InputError, match=r"state\.pt: ") as error:
        load_state(tmp_path, make())
    assert "\n" not in str(error.value)


def test_the_state_of_another_model_is_refused(tmp_path: Path) -> None:
    save_state(tmp_path, make(inputs=4), TrainProgress())
    with pytest.raises(InputError, match=r"state\.pt: .*weight"):
        load_state(tmp_path, make(inputs=3))


def test_a_missing_state_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"state\.pt"):
        load_state(tmp_path, make())


@pytest.mark.parametrize(
    ("weights", "parts"),
    [
        ({"weight": torch.zeros(2, 3)}, ["bias"]),
        ({"weight": torch.zeros(2, 3), "bias": torch.zeros(2), "scale": torch.zeros(1)}, ["scale"]),
        ({"weight": torch.zeros(2, 5), "bias": torch.zeros(2)}, ["weight", "(2, 5)", "(2, 3)"]),
    ],
)
def test_weights_of_another_model_are_named(
    weights: dict[str, torch.Tensor], parts: list[str], tmp_path: Path
) -> None:
    save_weights(weights, tmp_path / BEST)
    model = make().model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError, match=r"best\.safetensors: ") as error:
        load_weights(model, tmp_path / BEST)
    assert all(part in str(error.value) for part in parts)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("content", [b"", b"no safetensors", None])
def test_damaged_or_missing_weights_are_one_line(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / BEST).write_bytes(content)
    with pytest.raises(InputError, match=r"best\.safetensors: ") as error:
        load_weights(make().model, tmp_path / BEST)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": "3"},
        {"epoch": -3},
        {"epoch": 1.5},
        {"epoch": True},
        {"epoch": 10**12},
        {"best_rsum": float("nan")},
        {"best_rsum": "high"},
        {"best_epoch": 5},
        {"step": -1},
        {"other": 1},
    ],
)
def test_counters_that_no_run_has_are_refused(change: dict, tmp_path: Path) -> None:
    state = make()
    save_state(tmp_path, state, TrainProgress(epoch=2, step=9, best_rsum=100.0, best_epoch=1))
    content = torch.load(tmp_path / STATE)
    content["progress"].update(change)
    torch.save(content, tmp_path / STATE)
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    with pytest.raises(InputError, match=r"state\.pt: .*progress") as error:
        load_state(tmp_path, state)
    assert "\n" not in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in state.model.state_dict().items())


@pytest.mark.parametrize("key", ["model", "optimizer", "scaler", "progress"])
@pytest.mark.parametrize("value", [None, [], "text", {"a": 1}])
def test_a_state_with_a_part_of_another_kind_is_refused(key: str, value: object, tmp_path: Path) -> None:
    state = make()
    save_state(tmp_path, state, TrainProgress())
    content = torch.load(tmp_path / STATE)
    content[key] = value
    torch.save(content, tmp_path / STATE)
    with pytest.raises(InputError, match=r"state\.pt: "):
        load_state(tmp_path, make())
