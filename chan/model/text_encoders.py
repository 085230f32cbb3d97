"""Words to word embeddings: a bidirectional GRU over word vectors, or BERT.

Shapes: B captions, W words of all captions, L words of the longest caption, E word dimension, D joint
dimension. Ids are (W,) int64.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from chan.model.image_encoders import embedding
from chan.packing import Packed, to_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class BiGRUEncoder(nn.Module):
    """Word vectors and a one-layer bidirectional GRU, whose two outputs per word are averaged and normalised.

    Args:
        words: size of the vocabulary.
        word_dim: E.
        dim: D, also the hidden size of each direction.
        normalise: whether embeddings are scaled to unit length.
    """

    def __init__(self, words: int, word_dim: int, dim: int, normalise: bool = True) -> None:
        super().__init__()
        self.normalise = normalise
        self.embed = nn.Embedding(words, word_dim)
        nn.init.xavier_uniform_(self.embed.weight)
        self.rnn = nn.GRU(word_dim, dim, bidirectional=True)

    def forward(self, captions: Packed) -> Packed:
        """Ids (W,) to embeddings (W, D)."""
        order, batch_sizes = step_order(captions.offsets)
        order = to_device(order, captions.rows.device)
        vectors = self.embed(captions.rows.index_select(0, order))
        with torch.autocast(vectors.device.type, enabled=False):  # rounding errors accumulate in a recurrence
            out = self.rnn(PackedSequence(vectors, batch_sizes))[0].data
        forwards, backwards = out.chunk(2, dim=1)
        both = ((forwards + backwards) / 2).index_select(0, order.argsort())
        return captions.with_rows(embedding(both, self.normalise))


def step_order(offsets: Tensor) -> tuple[Tensor, Tensor]:
    """The order in which a recurrent network processes packed words: all first words, all second ones, ...

    >>> order, sizes = step_order(torch.tensor([0, 2, 5]))  # a caption of two words, then one of three
    >>> order.tolist(), sizes.tolist()
    ([2, 0, 3, 1, 4], [2, 2, 1])

    Args:
        offsets: (B + 1,) int64 offsets of the captions.

    Returns:
        (W,) int64 order, captions from long to short within a step, and (L,) int64 words in each step, as a
        `PackedSequence` needs them.
    """
    lengths = offsets.diff()
    rank = lengths.argsort(descending=True, stable=True).argsort()
    step = torch.arange(int(offsets[-1])) - offsets[:-1].repeat_interleave(lengths)
    order = (step * len(lengths) + rank.repeat_interleave(lengths)).argsort()
    return order, step.bincount()


class BertEncoder(nn.Module):
    """BERT's last hidden states, projected to the joint space and normalised.

    Args:
        bert: an encoder of `transformers`. Its pooler is removed: word embeddings do not depend on it.
        dim: D.
        normalise: whether embeddings are scaled to unit length.
    """

    def __init__(self, bert: "PreTrainedModel", dim: int, normalise: bool = True) -> None:
        super().__init__()
        self.bert, self.normalise = bert, normalise
        if getattr(bert, "pooler", None) is not None:
            bert.pooler = None
        self.linear = nn.Linear(bert.config.hidden_size, dim)

    def forward(self, captions: Packed) -> Packed:
        """Ids (W,) to embeddings (W, D)."""
        places = to_device(captions.padded_places(), captions.rows.device)
        longest = int(captions.lengths.max())
        ids = captions.rows.new_full((len(captions) * longest,), self.bert.config.pad_token_id or 0)
        ids = ids.index_copy(0, places, captions.rows).unflatten(0, (len(captions), longest))
        valid = to_device((torch.arange(longest) < captions.lengths[:, None]).long(), ids.device)
        hidden = self.bert(input_ids=ids, attention_mask=valid).last_hidden_state
        words = hidden.flatten(0, 1).index_select(0, places)
        return captions.with_rows(embedding(self.linear(words), self.normalise))
