"""What a checkpoint says is compared with what it is meant for before any kernel sees it."""

import copy
import math

import pytest
import torch
from torch import nn

from data_tools.weights.states import check_optimizer_state, check_scaler_state, check_tensors

OPTIMIZERS = {
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, fused=True),
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
}


def stepped(make) -> torch.optim.Optimizer:
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    optimizer = make(model.parameters())
    model(torch.ones(2, 5)).square().sum().backward()
    optimizer.step()
    return optimizer


@pytest.fixture(params=OPTIMIZERS)
def optimizer(request):
    return stepped(OPTIMIZERS[request.param])


def test_a_saved_state_fits(optimizer):
    check_optimizer_state(optimizer.state_dict(), optimizer)
    changed = copy.deepcopy(optimizer.state_dict())
    changed["param_groups"][0]["lr"] = 0.001  # a schedule changes it
    check_optimizer_state(changed, optimizer)


def moment(state):
    return "exp_avg" if "exp_avg" in state["state"][0] else "momentum_buffer"


CHANGES = {
    "a moment of three numbers": lambda s: s["state"][0].update({moment(s): torch.zeros(3)}),
    "a larger moment": lambda s: s["state"][0].update({moment(s): torch.zeros(500, 500)}),
    "a moment of whole numbers": lambda s: s["state"][0].update({moment(s): torch.zeros(3, 5, dtype=torch.int64)}),
    "a moment that is a list": lambda s: s["state"][0].update({moment(s): [0.0] * 15}),
    "a sparse moment": lambda s: s["state"][0].update({moment(s): torch.zeros(3, 5).to_sparse()}),
    "NaN in a moment": lambda s: s["state"][0][moment(s)].fill_(math.nan),
    "an unknown moment": lambda s: s["state"][0].update(other=torch.zeros(3, 5)),
    "a missing moment": lambda s: s["state"][0].pop(moment(s)),
    "an unknown parameter": lambda s: s["state"].update({7: s["state"][0]}),
    "a parameter by name": lambda s: s["state"].update(weight=s["state"].pop(0)),
    "no state": lambda s: s.pop("state"),
    "a state that is a list": lambda s: s.update(state=[]),
    "no groups": lambda s: s.update(param_groups=[]),
    "no learning rate": lambda s: s["param_groups"][0].pop("lr"),
    "a learning rate of NaN": lambda s: s["param_groups"][0].update(lr=math.nan),
    "a learning rate as text": lambda s: s["param_groups"][0].update(lr="0.1"),
    "other weight decay": lambda s: s["param_groups"][0].update(weight_decay=math.inf),
    "parameters in another order": lambda s: s["param_groups"][0].update(params=[1, 0]),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_state_that_does_not_fit_is_refused(optimizer, change):
    state = copy.deepcopy(optimizer.state_dict())
    change(state)
    with pytest.raises(ValueError, match="optimizer") as raised:
        check_optimizer_state(state, optimizer)
    assert "\n" not in str(raised.value)


def test_what_adam_alone_has_is_checked_too():
    optimizer = stepped(OPTIMIZERS["AdamW"])
    for change in (
        lambda s: s["param_groups"][0].pop("betas"),
        lambda s: s["param_groups"][0].update(betas=(0.9, 2.0)),
        lambda s: s["param_groups"][0].update(fused="yes"),
        lambda s: s["state"][0]["exp_avg_sq"].fill_(-1),
        lambda s: s["state"][0].update(step=torch.tensor(-1.0)),
        lambda s: s["state"][0].update(step=torch.zeros(2)),
        lambda s: s["state"][0].update(step="1"),
    ):
        state = copy.deepcopy(optimizer.state_dict())
        change(state)
        with pytest.raises(ValueError, match="optimizer"):
            check_optimizer_state(state, optimizer)


@pytest.mark.parametrize("found", [None, [], {"weight": 3}, {"weight": torch.zeros(2, 3)}, {3: torch.zeros(2)}])
def test_weights_of_another_form_are_refused(found):
    with pytest.raises(ValueError, match=r"tensors|weight|missing"):
        check_tensors(found, {"weight": torch.zeros(3, 2)})


@pytest.mark.parametrize(
    "weight", [torch.full((3, 2), math.nan), torch.full((3, 2), -math.inf), torch.zeros(3, 2, dtype=torch.int64)]
)
def test_weights_that_are_no_finite_numbers_are_refused(weight):
    with pytest.raises(ValueError, match="weight"):
        check_tensors({"weight": weight}, {"weight": torch.zeros(3, 2)})


def test_a_scaler_state_is_checked():
    scaler = torch.amp.GradScaler("cpu")
    check_scaler_state(scaler.state_dict(), scaler)
    check_scaler_state({}, torch.amp.GradScaler("cpu", enabled=False))
    for wrong in ({}, {**scaler.state_dict(), "scale": math.nan}, {**scaler.state_dict(), "scale": "1"}, None):
        with pytest.raises(ValueError, match="scaler"):
            check_scaler_state(wrong, scaler)
