import pytest
import torch
from torch import nn

from chan.packing import pack
from chan.recurrence import bidirectional
from chan.text_encoders import BiGRUEncoder, step_order

WORDS, HIDDEN = 4, 6


def states_of_each(rnn: nn.GRU, sequences: list[torch.Tensor]) -> torch.Tensor:
    """torch's own, sequence by sequence: (W, 2 H) in the order of the sequences."""
    return torch.cat([rnn(sequence[:, None])[0].squeeze(1) for sequence in sequences])


@pytest.mark.parametrize("lengths", [[3, 1, 5, 5, 2], [4, 4, 4], [1], [7], [1, 1, 9]])
def test_states_and_gradients_are_those_of_single_sequences(lengths: list[int]) -> None:
    torch.manual_seed(0)
    rnn = nn.GRU(WORDS, HIDDEN, bidirectional=True).double()
    sequences = [torch.randn(n, WORDS, dtype=torch.float64) for n in lengths]
    packed = pack(sequences)
    order, batch_sizes = step_order(packed.offsets)
    words = packed.rows.requires_grad_()
    upstream = torch.randn(len(words), 2 * HIDDEN, dtype=torch.float64)
    expected = states_of_each(rnn, list(words.split(lengths)))
    found = bidirectional(rnn, words[order], batch_sizes)[order.argsort()]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    wanted = [words, *rnn.parameters()]
    for own, theirs in zip(
        torch.autograd.grad(found, wanted, upstream), torch.autograd.grad(expected, wanted, upstream), strict=True
    ):
        torch.testing.assert_close(own, theirs, rtol=0, atol=1e-13)


def test_training_and_evaluation_give_the_same_embeddings() -> None:
    """Training on the CPU has its own recurrence, evaluation has torch's."""
    torch.manual_seed(0)
    encoder = BiGRUEncoder(20, WORDS, HIDDEN)
    captions = pack([torch.randint(20, (n,)) for n in (2, 9, 1, 4)])
    training, evaluation = encoder.train()(captions).rows, encoder.eval()(captions).rows
    torch.testing.assert_close(training, evaluation, rtol=0, atol=1e-6)
