"""A gated recurrent unit over packed sequences for the CPU, with its own backward pass.

torch's backward pass on the CPU fills, at each time step, a tensor of the size of all inputs' gates, and adds to
the gradient of each weight; both are done once here. On a GPU cuDNN does as much and more.

Shapes: W words of all sequences, n_t sequences with a word at time step t, E input dimension, H hidden dimension.
"""

from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn


def bidirectional(rnn: nn.GRU, words: Tensor, batch_sizes: Tensor) -> Tensor:
    """(W, 2 H): what the one-layer bidirectional `rnn` gives for packed words, forwards and backwards.

    Args:
        rnn: a GRU with biases.
        words: (W, E), all first words, all second ones, ..., as in a `PackedSequence`.
        batch_sizes: (time steps,) int64: n_t, never rising.
    """
    sizes = batch_sizes.tolist()
    outputs = []
    for end, backwards in (("l0", False), ("l0_reverse", True)):
        weights = (getattr(rnn, f"{name}_{end}") for name in ("weight_ih", "bias_ih", "weight_hh", "bias_hh"))
        weight_in, bias_in, weight, bias = weights
        gates = nn.functional.linear(words, weight_in, bias_in)
        outputs.append(_Recurrence.apply(gates, weight, bias, sizes, backwards))
    return torch.cat(outputs, 1)


class _Recurrence(torch.autograd.Function):
    """The hidden states (W, H), from what the inputs give to the gates (W, 3 H) in the order r, z, n.

    r = sigmoid(gate + recurrent), z likewise, n = tanh(gate + r * recurrent), h' = n + z * (h - n) (Cho et al.
    2014, in the form of torch and cuDNN).
    """

    @staticmethod
    def forward(
        ctx: Any, gates: Tensor, weight: Tensor, bias: Tensor, sizes: list[int], backwards: bool
    ) -> Tensor:
        hidden = weight.shape[1]
        states = gates.new_empty(len(gates), hidden)
        before = torch.zeros_like(states)  # the state from which each was made
        active, inner = torch.empty_like(gates), torch.empty_like(states)  # r, z, n; the recurrent part of n
        last: slice | None = None
        for rows in _steps(sizes, backwards):
            old = before[rows]
            if last is not None:
                common = min(last.stop - last.start, len(old))
                old[:common] = states[last][:common]
            recurrent = torch.addmm(bias, old, weight.T)
            r, z, n = active[rows].split(hidden, 1)
            both = active[rows][:, : 2 * hidden]
            torch.add(gates[rows][:, : 2 * hidden], recurrent[:, : 2 * hidden], out=both).sigmoid_()
            inner[rows] = recurrent[:, 2 * hidden :]
            torch.addcmul(gates[rows][:, 2 * hidden :], r, inner[rows], out=n).tanh_()
            torch.lerp(n, old, z, out=states[rows])
            last = rows
        ctx.save_for_backward(weight, before, active, inner)
        ctx.sizes, ctx.backwards = sizes, backwards
        return states

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        weight, before, active, inner = ctx.saved_tensors
        hidden = weight.shape[1]
        of_gates, of_recurrent = torch.empty_like(active), torch.empty_like(active)
        passed: Tensor | None = None  # to the states of the step before
        for rows in _steps(ctx.sizes, not ctx.backwards):
            r, z, n = active[rows].split(hidden, 1)
            of_state = gradients[0][rows].clone()
            if passed is not None:
                common = min(len(passed), len(of_state))
                of_state[:common] += passed[:common]
            of_r, of_z, of_n = of_gates[rows].split(hidden, 1)
            torch.mul(of_state * (1 - z), 1 - n * n, out=of_n)
            torch.mul(of_state * (before[rows] - n), z * (1 - z), out=of_z)
            torch.mul(of_n * inner[rows], r * (1 - r), out=of_r)
            own = of_recurrent[rows]
            own[:, : 2 * hidden] = of_gates[rows][:, : 2 * hidden]
            torch.mul(of_n, r, out=own[:, 2 * hidden :])
            passed = torch.addmm(of_state.mul_(z), own, weight)
        return of_gates, of_recurrent.T @ before, of_recurrent.sum(0), None, None


def _steps(sizes: list[int], backwards: bool) -> Iterator[slice]:
    """The rows of each time step, from the first or from the last."""
    ends = list(accumulate(sizes))
    rows = [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]
    return iter(rows[::-1] if backwards else rows)
