import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from chan.model.text_encoders import BertEncoder, BiGRUEncoder
from chan.packing import pack, step_order

LENGTHS = [3, 1, 6, 3]
WORDS, WORD_DIM, DIM = 20, 5, 4


def captions(lengths: list[int]) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return [torch.randint(1, WORDS, (length,), generator=random) for length in lengths]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def gru_by_hand(rnn: torch.nn.GRU, suffix: str, vectors: np.ndarray) -> np.ndarray:
    """One direction of a GRU, step by step (Cho et al. 2014, as PyTorch documents it)."""
    wi, wh, bi, bh = (
        getattr(rnn, f"{name}_l0{suffix}").detach().numpy()
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    state, outputs = np.zeros(DIM), []
    for vector in vectors:
        ri, zi, ni = np.split(wi @ vector + bi, 3)
        rh, zh, nh = np.split(wh @ state + bh, 3)
        reset, update = sigmoid(ri + rh), sigmoid(zi + zh)
        state = (1 - update) * np.tanh(ni + reset * nh) + update * state
        outputs.append(state)
    return np.array(outputs)


@pytest.mark.parametrize("lengths", [LENGTHS, [1], [4, 4], [2, 5]])
def test_bigru_against_its_formulas(lengths: list[int]) -> None:
    torch.manual_seed(0)
    encoder = BiGRUEncoder(WORDS, WORD_DIM, DIM).double()
    ids = captions(lengths)
    expected = []
    for caption in ids:
        vectors = encoder.embed.weight.detach().numpy()[caption.numpy()]
        forwards = gru_by_hand(encoder.rnn, "", vectors)
        backwards = gru_by_hand(encoder.rnn, "_reverse", vectors[::-1])[::-1]
        both = (forwards + backwards) / 2
        expected.append(both / np.linalg.norm(both, axis=1, keepdims=True))
    found = encoder(pack(ids))
    np.testing.assert_allclose(found.rows.detach(), np.concatenate(expected), rtol=1e-6)


def test_steps_take_the_long_captions_first() -> None:
    order, sizes = step_order(pack(captions([2, 3, 1])).offsets)
    assert order.tolist() == [2, 0, 5, 3, 1, 4]
    assert sizes.tolist() == [3, 2, 1]


def test_word_vectors_are_trained() -> None:
    encoder = BiGRUEncoder(WORDS, WORD_DIM, DIM)
    ids = captions(LENGTHS)
    (gradient,) = torch.autograd.grad(encoder(pack(ids)).rows.sum(), encoder.embed.weight)
    assert gradient.abs().sum(1).nonzero().flatten().tolist() == torch.cat(ids).unique().tolist()


def small_bert() -> BertEncoder:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=WORDS, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24
    )
    return BertEncoder(BertModel(config), DIM).eval()


@pytest.mark.parametrize("lengths", [LENGTHS, [1], [4, 4]])
def test_bert_gives_a_caption_the_same_in_any_batch(lengths: list[int]) -> None:
    encoder, ids = small_bert(), captions(lengths)
    together = encoder(pack(ids)).rows
    alone = torch.cat([encoder(pack([caption])).rows for caption in ids])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_bert_takes_the_last_hidden_state() -> None:
    encoder, ids = small_bert(), captions([5])[0]
    projected = encoder.linear(encoder.bert(ids[None]).last_hidden_state[0])
    expected = projected / projected.norm(dim=1, keepdim=True)
    torch.testing.assert_close(encoder(pack([ids])).rows, expected, rtol=1e-4, atol=1e-5)


def test_padding_is_the_encoders_own() -> None:
    """RoBERTa pads with 1 and counts positions from what is no padding."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    encoder = BertEncoder(RobertaModel(RobertaConfig(vocab_size=WORDS, pad_token_id=1, **sizes)), DIM).eval()
    ids = [caption + 2 - 2 * (caption > WORDS - 3) for caption in captions(LENGTHS)]
    together = encoder(pack(ids)).rows
    alone = torch.cat([encoder(pack([caption])).rows for caption in ids])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_bert_has_no_pooler() -> None:
    """Words do not pass it, and DistributedDataParallel waits for the gradient of every weight."""
    encoder = small_bert()
    encoder(pack(captions(LENGTHS))).rows.sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())
