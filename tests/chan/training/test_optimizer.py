import pytest
import torch
from transformers import BertConfig, BertModel

from chan.model.chan import Chan
from chan.model.image_encoders import ImageEncoder
from chan.model.text_encoders import BertEncoder, BiGRUEncoder
from chan.scoring.pairwise import Scoring
from chan.training.optimizer import half_cosine, make_optimizer, set_learning_rate, step_down


def make(bert: bool) -> Chan:
    text: BertEncoder | BiGRUEncoder = BiGRUEncoder(10, 4, 8)
    if bert:
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        text = BertEncoder(BertModel(BertConfig(vocab_size=10, **sizes)), 8)
    return Chan(ImageEncoder(6, 8, "basic"), text, Scoring(pooling="mean"))


def test_berts_own_weights_learn_slower() -> None:
    model = make(bert=True)
    optimizer = make_optimizer(model, lr=1.0, text_lr_factor=0.1, weight_decay=0.02)
    set_learning_rate(optimizer, step_down(1.0, 0.5, 3, epoch=3))
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    own = {id(p) for p in model.text_encoder.bert.parameters()}
    assert len(rates) == len(list(model.parameters()))
    for parameter in model.parameters():
        assert rates[id(parameter)] == pytest.approx(0.05 if id(parameter) in own else 0.5)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.02}


def test_the_steps_are_those_of_adamw() -> None:
    """Loshchilov and Hutter 2019, algorithm 2, written down in float64."""
    model = make(bert=False).double()
    optimizer = make_optimizer(model, lr=0.01, text_lr_factor=0.1, weight_decay=0.3)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    means, squares = ({name: torch.zeros_like(p) for name, p in weights.items()} for _ in range(2))
    random = torch.Generator().manual_seed(0)
    for step in range(1, 6):
        for name, parameter in model.named_parameters():
            g = torch.randn(parameter.shape, generator=random, dtype=torch.float64)
            parameter.grad = g.clone()
            means[name] = 0.9 * means[name] + 0.1 * g
            squares[name] = 0.999 * squares[name] + 0.001 * g * g
            mean, square = means[name] / (1 - 0.9**step), squares[name] / (1 - 0.999**step)
            weights[name] -= 0.01 * (0.3 * weights[name] + mean / (square.sqrt() + 1e-8))
        optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), weights[name], rtol=0, atol=1e-12)


def test_the_rate_steps_down_at_its_epoch() -> None:
    assert [step_down(0.2, 0.1, 2, epoch) for epoch in range(4)] == pytest.approx([0.2, 0.2, 0.02, 0.02])


def test_the_rate_falls_along_a_cosine() -> None:
    assert [half_cosine(0.4, done) for done in (0, 1 / 3, 0.5, 1)] == pytest.approx([0.4, 0.3, 0.2, 0.0])
