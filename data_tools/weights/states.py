"""Checking what a checkpoint holds besides its file format: weights, and the state of an optimizer.

Fused optimizers trust the shapes of their moments, so a wrong one writes beyond its tensor. All that is read is
compared with the objects that it is meant for, before it is loaded into them.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch

from data_tools.weights.tensor_names import tensor_differences

_LEARNING_RATES = ("lr", "initial_lr")  # which schedules change
_NOT_NEGATIVE = ("step", "exp_avg_sq")


def check_tensors(found: Any, expected: Mapping[str, torch.Tensor]) -> None:
    """Check weights against those of a model.

    Raises:
        ValueError: names, shapes, or kinds of numbers differ, or a number is not finite; the message says which.
    """
    if not isinstance(found, Mapping) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise ValueError("expected tensors by name")
    different = tensor_differences(
        {str(name): tuple(value.shape) for name, value in found.items()},
        {name: tuple(value.shape) for name, value in expected.items()},
    )
    if different:
        raise ValueError(different)
    for name, value in found.items():
        if value.layout is not torch.strided or value.is_floating_point() != expected[name].is_floating_point():
            raise ValueError(f"{name}: expected numbers of the type {expected[name].dtype}, found {value.dtype}")
    check_finite(found)


def check_finite(tensors: Mapping[str, torch.Tensor]) -> None:
    """`ValueError` that names the first tensor with a NaN or an infinite number."""
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name}: holds a number that is not finite")


def check_optimizer_state(found: Any, optimizer: torch.optim.Optimizer) -> None:
    """Check a state for an optimizer, which has the parameters and settings that the state was saved with.

    Raises:
        ValueError: groups, settings, or shapes, types or values of moments do not fit; the message says which.
    """
    expected = optimizer.state_dict()
    if not isinstance(found, Mapping) or set(found) != {"state", "param_groups"}:
        raise ValueError("optimizer: expected the keys state and param_groups")
    groups = found["param_groups"]
    if not isinstance(groups, list) or len(groups) != len(expected["param_groups"]):
        raise ValueError(f"optimizer: expected {len(expected['param_groups'])} groups of parameters")
    for own, theirs in zip(expected["param_groups"], groups, strict=True):
        _check_group(own, theirs)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    states = found["state"]
    if not isinstance(states, Mapping):
        raise ValueError("optimizer: state: expected moments by parameter")
    kinds = _moments(optimizer)
    for number, moments in states.items():
        if type(number) is not int or not 0 <= number < len(parameters):
            raise ValueError(f"optimizer: state: there is no parameter {number!r}")
        if not isinstance(moments, Mapping) or set(moments) != kinds:
            raise ValueError(f"optimizer: state {number}: expected {', '.join(sorted(kinds))}")
        for name, value in moments.items():
            _check_moment(f"optimizer: state {number}: {name}", name, value, parameters[number])


def check_scaler_state(found: Any, scaler: torch.amp.GradScaler) -> None:
    """`ValueError` unless a state fits a gradient scaler: its keys, with positive finite numbers."""
    expected = scaler.state_dict()
    if not isinstance(found, Mapping) or set(found) != set(expected):
        raise ValueError(f"scaler: expected the keys {', '.join(sorted(expected)) or '(none)'}")
    for name, value in found.items():
        low = 0 if name.startswith("_") else 1e-30
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value < 1e30:
            raise ValueError(f"scaler: {name}: expected a positive number, found {value!r}")


def _check_group(expected: Mapping[str, Any], found: Any) -> None:
    if not isinstance(found, Mapping):
        raise ValueError("optimizer: param_groups: expected settings by name")
    for name, value in expected.items():
        if name not in found:
            raise ValueError(f"optimizer: param_groups: {name} is missing")
        given = found[name]
        if name in _LEARNING_RATES:
            if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given < math.inf:
                raise ValueError(f"optimizer: param_groups: {name}: expected a learning rate, found {given!r}")
        elif type(given) is not type(value) or given != value:
            raise ValueError(f"optimizer: param_groups: {name}: expected {value!r}, found {given!r}")


def _moments(optimizer: torch.optim.Optimizer) -> set[str]:
    """The names of what an optimizer keeps per parameter."""
    if isinstance(optimizer, torch.optim.Adam):
        return {"step", "exp_avg", "exp_avg_sq"}
    if isinstance(optimizer, torch.optim.SGD):
        return {"momentum_buffer"}
    raise ValueError(f"optimizer: no rule for {type(optimizer).__name__}")


def _check_moment(where: str, name: str, value: Any, parameter: torch.Tensor) -> None:
    if value is None and name == "momentum_buffer":
        return  # before the first step
    shape = () if name == "step" else tuple(parameter.shape)
    if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
        raise ValueError(f"{where}: expected a tensor")
    if tuple(value.shape) != shape or not value.is_floating_point():
        raise ValueError(f"{where}: expected floats of shape {shape}, found {value.dtype} {tuple(value.shape)}")
    if not bool(torch.isfinite(value).all()) or (name in _NOT_NEGATIVE and bool((value < 0).any())):
        raise ValueError(f"{where}: holds a number that cannot be one of its values")
