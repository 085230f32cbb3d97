import pytest
import torch
from transformers import BertConfig, BertModel

from chan.model.chan import Chan
from chan.model.image_encoders import ImageEncoder
from chan.model.text_encoders import BertEncoder, BiGRUEncoder
from chan.scoring.pairwise import Scorer
from chan.training.optimizer import make_optimizer, set_learning_rate


def make(bert: bool) -> Chan:
    text: BertEncoder | BiGRUEncoder = BiGRUEncoder(10, 4, 8)
    if bert:
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        text = BertEncoder(BertModel(BertConfig(vocab_size=10, **sizes)), 8)
    return Chan(ImageEncoder(6, 8, "basic"), text, Scorer.from_names(pooling="mean"))


def test_berts_weights_have_their_own_rate_and_all_are_decayed() -> None:
    model = make(bert=True)
    optimizer = make_optimizer(model, lr=1.0, text_lr_factor=0.1, weight_decay=0.02)
    set_learning_rate(optimizer, 0.5)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert isinstance(model.text_encoder, BertEncoder)
    pretrained = {id(p) for p in model.text_encoder.bert.parameters()}
    assert len(rates) == len(list(model.parameters()))
    for parameter in model.parameters():
        assert rates[id(parameter)] == pytest.approx(0.05 if id(parameter) in pretrained else 0.5)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.02}


@pytest.mark.parametrize("bert", [False, True])
def test_a_step_moves_each_weight_by_its_rate(bert: bool) -> None:
    """AdamW's first step without decay is the learning rate times the sign of the gradient."""
    model = make(bert)
    optimizer = make_optimizer(model, lr=1.0, text_lr_factor=0.1, weight_decay=0.0)
    set_learning_rate(optimizer, 0.01)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        rate = 0.001 if name.startswith("text_encoder.bert.") else 0.01
        expected = before[name] - rate
        torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=1e-6)
