import numpy as np
import pytest
import torch

from chan.model.aggregation import Aggregation
from chan.model.embeddings import l2_normalise
from chan.model.image_encoders import ImageEncoder, SelfAttention, Transformer
from chan.packing import Packed, pack

ENCODERS = ["basic", "selfattention", "transformer"]
FEATURES, DIM = 10, 16


def images(lengths: list[int]) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return [torch.randn(length, FEATURES, generator=random, dtype=torch.float64) for length in lengths]


def build(encoder: str) -> ImageEncoder:
    torch.manual_seed(1)
    model = ImageEncoder(FEATURES, DIM, encoder).double()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)  # PyTorch starts them at zero, which would hide a fault
    return model


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("lengths", [[3, 1, 6, 3], [4, 4, 4], [1], [5, 2]])
def test_a_batch_equals_each_image_alone(encoder: str, lengths: list[int]) -> None:
    model, rows = build(encoder), images(lengths)
    together = model(pack(rows))
    alone = torch.cat([model(pack([row])).rows for row in rows])
    torch.testing.assert_close(together.rows, alone, rtol=1e-10, atol=1e-12)
    assert together.offsets.tolist() == pack(rows).offsets.tolist()


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_gradient_of_a_batch_is_that_of_its_images(encoder: str) -> None:
    model, rows = build(encoder), images([3, 1, 5])
    upstream = torch.randn(9, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def gradient(batches: list[tuple[Packed, torch.Tensor]]) -> list[torch.Tensor]:
        model.zero_grad()
        for batch, weights in batches:
            (model(batch).rows * weights).sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    parts = list(zip([pack([row]) for row in rows], upstream.split([3, 1, 5]), strict=True))
    together = gradient([(pack(rows), upstream)])
    assert len(together) == len(list(model.parameters()))
    for whole, summed in zip(together, gradient(parts), strict=True):
        torch.testing.assert_close(whole, summed, rtol=1e-9, atol=1e-11)


def heads_by_hand(attention: torch.nn.MultiheadAttention, x: np.ndarray) -> np.ndarray:
    """Multi-head attention of one image, one head at a time."""
    weight, bias = (getattr(attention, f"in_proj_{kind}").detach().numpy() for kind in ("weight", "bias"))
    queries, keys, values = np.split(x @ weight.T + bias, 3, axis=1)
    width = DIM // 8
    heads = []
    for head in range(8):
        part = slice(head * width, (head + 1) * width)
        logits = queries[:, part] @ keys[:, part].T / np.sqrt(width)
        shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        heads.append(shares @ values[:, part])
    out = attention.out_proj
    return np.concatenate(heads, axis=1) @ out.weight.detach().numpy().T + out.bias.detach().numpy()


def layer_norm(norm: torch.nn.LayerNorm, x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(1, keepdims=True) + norm.eps)
    return scaled * norm.weight.detach().numpy() + norm.bias.detach().numpy()


def affine(layer: torch.nn.Module, x: np.ndarray) -> np.ndarray:
    assert isinstance(layer, torch.nn.Linear)
    return x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()


@pytest.mark.parametrize("encoder", ENCODERS)
def test_against_the_formulas(encoder: str) -> None:
    model, row = build(encoder), images([5])[0]
    x = affine(model.fc, row.numpy())
    layer = model.feedforward
    if isinstance(layer, SelfAttention):
        x = x + heads_by_hand(layer.attn, layer_norm(layer.ln, x))
    elif isinstance(layer, Transformer):
        x = x + heads_by_hand(layer.attn, layer_norm(layer.ln_1, x))
        first, _, second = layer.mlp
        hidden = affine(first, layer_norm(layer.ln_2, x))
        x = x + affine(second, hidden / (1 + np.exp(-1.702 * hidden)))
    else:
        assert (encoder, layer) == ("basic", None)
    expected = x / np.linalg.norm(x, axis=1, keepdims=True)
    np.testing.assert_allclose(model(pack([row])).rows.detach(), expected, rtol=1e-6, atol=1e-8)


def test_half_precision_features_are_accepted() -> None:
    model, row = ImageEncoder(FEATURES, DIM, "basic"), images([3])[0]
    found = model(pack([row.half()])).rows
    torch.testing.assert_close(found, model(pack([row.half().float()])).rows)


def test_a_zero_row_stays_zero() -> None:
    rows = torch.zeros(1, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(l2_normalise(rows).sum(), rows)
    assert torch.isfinite(gradient).all()
    assert torch.equal(l2_normalise(rows), torch.zeros(1, 4))


def test_the_projection_starts_xavier_uniform() -> None:
    layer = ImageEncoder(300, 200, "basic").fc
    assert not layer.bias.any()
    bound = (6 / 500) ** 0.5
    assert layer.weight.abs().max() <= bound * (1 + 1e-6)
    assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)


def images_and_perceptron() -> tuple[ImageEncoder, list[torch.Tensor]]:
    model = build("mlp")
    assert model.mlp is not None
    norm = model.mlp[1]
    assert isinstance(norm, torch.nn.BatchNorm1d)
    for values in (norm.weight, norm.running_mean, norm.running_var):
        assert values is not None
        torch.nn.init.uniform_(values, 0.5, 2.0)
    return model, images([3, 1, 5])


@pytest.mark.parametrize("training", [False, True])
def test_the_perceptron_is_added_to_the_projection(training: bool) -> None:
    """In training, batch normalisation takes the mean and variance of all regions of the batch."""
    model, rows = images_and_perceptron()
    assert model.mlp is not None
    first, norm, _, second = model.mlp
    x = np.concatenate([row.numpy() for row in rows])
    hidden = affine(first, x)
    mean, variance = (value.numpy().copy() for value in (norm.running_mean, norm.running_var))
    if training:
        mean, variance = hidden.mean(0), hidden.var(0)
    scaled = (hidden - mean) / np.sqrt(variance + 1e-5)
    scaled = scaled * norm.weight.detach().numpy() + norm.bias.detach().numpy()
    total = affine(model.fc, x) + affine(second, np.maximum(scaled, 0))
    expected = total / np.linalg.norm(total, axis=1, keepdims=True)
    found = model.train(training)(pack(rows)).rows.detach()
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)
    assert hidden.shape == (9, DIM // 2)


@pytest.mark.parametrize("normalise", [True, False])
def test_an_aggregation_makes_one_vector_per_image(normalise: bool) -> None:
    torch.manual_seed(1)
    rows = images([3, 1, 5])
    model = ImageEncoder(FEATURES, DIM, "basic", normalise, Aggregation("max")).double()
    found = model(pack(rows))
    assert found.lengths.tolist() == [1, 1, 1]
    for vector, row in zip(found.rows.detach().numpy(), rows, strict=True):
        largest = affine(model.fc, row.numpy()).max(0)
        np.testing.assert_allclose(vector, largest / (np.linalg.norm(largest) if normalise else 1), rtol=1e-6)
