"""GPO against a loop over sequences, dimensions and positions, in float64, from the formulas of the paper."""

import math

import pytest
import torch
from torch import Tensor

from chan.model.aggregation import AGGREGATIONS, Aggregation, position_encodings
from chan.packing import pack

DIM = 5
LENGTHS = {
    "ragged": [3, 1, 7, 3, 2],
    "even": [4, 4],
    "one row": [1],
    "one sequence": [6],
    "long": [36, 10, 100],
}


def sequences(lengths: list[int]) -> list[Tensor]:
    random = torch.Generator().manual_seed(4)
    return [torch.randn(length, DIM, generator=random, dtype=torch.float64) for length in lengths]


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def recurrent(gru: torch.nn.GRU, suffix: str, inputs: list[Tensor]) -> list[Tensor]:
    """One direction of a GRU, position by position (Cho et al. 2014, as PyTorch documents it)."""
    wi, wh, bi, bh = (
        getattr(gru, f"{name}_l0{suffix}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    state, outputs = torch.zeros(32, dtype=torch.float64), []
    for one in inputs:
        (ri, zi, ni), (rh, zh, nh) = (wi @ one + bi).split(32), (wh @ state + bh).split(32)
        update = sigmoid(zi + zh)
        state = (1 - update) * torch.tanh(ni + sigmoid(ri + rh) * nh) + update * state
        outputs.append(state)
    return outputs


def weights_by_hand(gpo: torch.nn.Module, length: int) -> list[Tensor]:
    encodings = []
    for position in range(length):
        angles = [position / 10000 ** (2 * i / 32) for i in range(16)]
        pairs = [(math.sin(angle), math.cos(angle)) for angle in angles]
        encodings.append(torch.tensor([value for pair in pairs for value in pair], dtype=torch.float64))
    gru, linear = gpo.gru, gpo.linear
    assert isinstance(gru, torch.nn.GRU)
    assert isinstance(linear, torch.nn.Linear)
    there, back = recurrent(gru, "", encodings), recurrent(gru, "_reverse", encodings[::-1])[::-1]
    exponentials = [
        torch.exp((linear.weight[0] * (one + other) / 2).sum() / 0.1)
        for one, other in zip(there, back, strict=True)
    ]
    return [value / sum(exponentials) for value in exponentials]


def by_hand(aggregation: Aggregation, rows: Tensor) -> Tensor:
    length = len(rows)
    weights = weights_by_hand(aggregation.gpo, length) if aggregation.gpo is not None else []
    vector = []
    for column in rows.T:
        values = sorted(column, key=lambda value: -value.item())
        if aggregation.name == "max":
            vector.append(values[0])
        elif aggregation.name == "mean":
            vector.append(sum(values) / length)
        else:
            vector.append(sum(w * value for w, value in zip(weights, values, strict=True)))
    return torch.stack(vector)


def build(name: str) -> Aggregation:
    torch.manual_seed(1)
    aggregation = Aggregation(name).double()
    for parameter in aggregation.parameters():
        parameter.data *= 3  # weights far from equal
    return aggregation


@pytest.mark.parametrize("name", AGGREGATIONS)
@pytest.mark.parametrize("case", LENGTHS)
def test_values_and_gradients(name: str, case: str) -> None:
    aggregation, rows = build(name), sequences(LENGTHS[case])
    leaves = [row.clone().requires_grad_() for row in rows]
    expected = torch.stack([by_hand(aggregation, leaf) for leaf in leaves])
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    of_rows = torch.autograd.grad((expected * upstream).sum(), [*leaves, *aggregation.parameters()])
    packed = pack(rows)
    packed.rows.requires_grad_()
    found = aggregation(packed)
    assert found.offsets.tolist() == list(range(len(rows) + 1))
    torch.testing.assert_close(found.rows, expected, rtol=1e-10, atol=1e-10)
    gradients = torch.autograd.grad((found.rows * upstream).sum(), [packed.rows, *aggregation.parameters()])
    torch.testing.assert_close(gradients[0], torch.cat(of_rows[: len(rows)]), rtol=1e-9, atol=1e-10)
    for one, other in zip(gradients[1:], of_rows[len(rows) :], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)
    with torch.no_grad():
        torch.testing.assert_close(aggregation(packed).rows, expected, rtol=1e-10, atol=1e-10)


def test_position_encodings_are_the_transformers() -> None:
    found = position_encodings(3)
    assert found.shape == (3, 32)
    assert found[0].tolist() == [0.0, 1.0] * 16
    assert found[2, 2].item() == pytest.approx(math.sin(2 / 10000 ** (2 / 32)), rel=1e-12)
    assert found[2, 31].item() == pytest.approx(math.cos(2 / 10000 ** (30 / 32)), rel=1e-12)


def test_a_weight_is_computed_once_per_length_until_the_parameters_change(monkeypatch: pytest.MonkeyPatch) -> None:
    aggregation = build("gpo")
    gpo = aggregation.gpo
    assert gpo is not None
    computed: list[list[int]] = []
    compute = gpo._compute

    def recorded(lengths: list[int]) -> list[Tensor]:
        computed.append(lengths)
        return compute(lengths)

    monkeypatch.setattr(gpo, "_compute", recorded)
    rows = pack(sequences([3, 5, 3, 1]))
    with torch.no_grad():
        first = aggregation(rows).rows
        assert torch.equal(aggregation(rows).rows, first)
        aggregation(pack(sequences([5, 2])))
    assert computed == [[1, 3, 5], [2]]
    other = build("gpo").state_dict()
    aggregation.load_state_dict({name: value * 2 for name, value in other.items()})
    with torch.no_grad():
        second = aggregation(rows).rows
    assert computed[2:] == [[1, 3, 5]]
    assert not torch.allclose(second, first)
    aggregation(rows)  # with a gradient nothing is kept
    aggregation(rows)
    assert computed[3:] == [[1, 3, 5], [1, 3, 5]]


def test_weights_kept_in_inference_serve_a_gradient_by_the_rows() -> None:
    aggregation = build("gpo")
    rows = pack(sequences([3, 2]))
    with torch.inference_mode():
        expected = aggregation(rows).rows
    rows.rows.requires_grad_()
    found = aggregation(rows).rows
    found.sum().backward()
    torch.testing.assert_close(found.detach(), expected)
    torch.testing.assert_close(rows.rows.grad.sum(0), torch.full((DIM,), 2.0, dtype=torch.float64))


def test_a_module_made_in_inference_mode() -> None:
    """Its parameters have no version counter: they may change without notice, so nothing is kept."""
    rows = pack([torch.randn(4, 3), torch.randn(2, 3)])
    with torch.inference_mode():
        module = Aggregation("gpo")
        before = module(rows).rows
        assert module.gpo is not None
        module.gpo.linear.weight.mul_(-3)
        after = module(rows).rows
    fresh = Aggregation("gpo")
    fresh.load_state_dict(module.state_dict())
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, fresh(rows).rows)


def test_an_unknown_name() -> None:
    with pytest.raises(ValueError, match="aggregation 'lse': expected one of gpo, mean, max"):
        Aggregation("lse")
