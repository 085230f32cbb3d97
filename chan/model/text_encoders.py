"""Words to word embeddings: a bidirectional GRU over word vectors, or BERT; an aggregation makes one of them.

Shapes: B captions, W words of all captions, L words of the longest caption, E word dimension, D joint
dimension. Ids are (W,) int64.
"""

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from chan.model.aggregation import Aggregation
from chan.model.embeddings import finished
from chan.packing import Packed, step_order
from data_tools.devices import to_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class BiGRUEncoder(nn.Module):
    """Word vectors and a bidirectional GRU, whose two outputs per word are averaged and normalised.

    Args:
        words: size of the vocabulary.
        word_dim: E.
        dim: D, also the hidden size of each direction.
        normalise: whether embeddings are scaled to unit length.
        aggregation: makes one embedding of those of a caption's words; None keeps them.
        initial_range: word vectors start uniform between -this and this; None: Xavier uniform.
        layers: of the GRU.
    """

    def __init__(
        self,
        words: int,
        word_dim: int,
        dim: int,
        normalise: bool = True,
        aggregation: Aggregation | None = None,
        initial_range: float | None = None,
        layers: int = 1,
    ) -> None:
        super().__init__()
        self.normalise = normalise
        self.embed = nn.Embedding(words, word_dim)
        if initial_range is None:
            nn.init.xavier_uniform_(self.embed.weight)
        else:
            nn.init.uniform_(self.embed.weight, -initial_range, initial_range)
        self.rnn = nn.GRU(word_dim, dim, layers, bidirectional=True)
        self.aggregation = aggregation

    def forward(self, captions: Packed) -> Packed:
        """Ids (W,) to embeddings (W, D), or (B, D) with an aggregation."""
        order, batch_sizes = step_order(captions.offsets)
        order = to_device(order, captions.rows.device)
        vectors = self.embed(captions.rows.index_select(0, order))
        with torch.autocast(vectors.device.type, enabled=False):  # rounding errors accumulate in a recurrence
            out = self.rnn(PackedSequence(vectors, batch_sizes))[0].data
        forwards, backwards = out.chunk(2, dim=1)
        both = ((forwards + backwards) / 2).index_select(0, order.argsort())
        return finished(captions.with_rows(both), self.aggregation, self.normalise)


class BertEncoder(nn.Module):
    """BERT's last hidden states, projected to the joint space and normalised.

    Args:
        bert: an encoder of `transformers`. Its pooler is removed: word embeddings do not depend on it.
        dim: D.
        normalise: whether embeddings are scaled to unit length.
        aggregation: makes one embedding of those of a caption's words; None keeps them.
    """

    def __init__(
        self, bert: "PreTrainedModel", dim: int, normalise: bool = True, aggregation: Aggregation | None = None
    ) -> None:
        super().__init__()
        self.bert, self.normalise = bert, normalise
        if getattr(bert, "pooler", None) is not None:
            bert.pooler = None
        self.linear = nn.Linear(bert.config.hidden_size, dim)
        self.aggregation = aggregation

    def forward(self, captions: Packed) -> Packed:
        """Ids (W,) to embeddings (W, D), or (B, D) with an aggregation."""
        places = to_device(captions.padded_places(), captions.rows.device)
        longest = int(captions.lengths.max())
        ids = captions.rows.new_full((len(captions) * longest,), self.bert.config.pad_token_id or 0)
        ids = ids.index_copy(0, places, captions.rows).unflatten(0, (len(captions), longest))
        valid = to_device((torch.arange(longest) < captions.lengths[:, None]).long(), ids.device)
        hidden = self.bert(input_ids=ids, attention_mask=valid).last_hidden_state
        words = hidden.flatten(0, 1).index_select(0, places)
        return finished(captions.with_rows(self.linear(words)), self.aggregation, self.normalise)
