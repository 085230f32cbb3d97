import pytest
from transformers import BertConfig, BertModel

from chan.image_encoders import ImageEncoder
from chan.model import Chan
from chan.optimisation import half_cosine, make_optimizer, set_learning_rate, step_down
from chan.scoring import Scoring
from chan.text_encoders import BertEncoder, BiGRUEncoder


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


def test_the_rate_steps_down_at_its_epoch() -> None:
    assert [step_down(0.2, 0.1, 2, epoch) for epoch in range(4)] == pytest.approx([0.2, 0.2, 0.02, 0.02])


def test_the_rate_falls_along_a_cosine() -> None:
    assert [half_cosine(0.4, done) for done in (0, 1 / 3, 0.5, 1)] == pytest.approx([0.4, 0.3, 0.2, 0.0])
