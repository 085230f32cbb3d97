"""The formulas of the published codes of CHAN, SCAN and VSE-infinity in plain PyTorch, on padded tensors.

Written from the papers and from what the public codes compute: CHAN one similarity tensor of images x captions x
regions x words with a mask of that shape, whose pooling recognises masked values by their value; SCAN's
cross-attention one caption at a time; VSE-infinity's pooling weights by a GRU over every sequence of the batch.

Shapes: B_i images, B_t captions, K regions of the image with most, L words of the longest caption, D joint
dimension.
"""

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, leaky_relu, normalize
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

from chan.model.aggregation import TEMPERATURE, PositionWeights, position_encodings
from chan.packing import Packed

OUTSIDE = -1.0  # the similarity of what is only padding


def padded(packed: Packed) -> tuple[Tensor, Tensor]:
    """Packed rows as (B, longest, ...), and (B, longest) bool: which of them are real."""
    rows = pad_sequence(list(packed.rows.split(packed.lengths.tolist())), batch_first=True)
    return rows, (torch.arange(rows.shape[1]) < packed.lengths[:, None]).to(rows.device)


def published_scores(
    images: tuple[Tensor, Tensor],
    captions: tuple[Tensor, Tensor],
    coding: str = "vha",
    pooling: str = "lse",
    alpha: float = 0.1,
    beta: float = 0.1,
) -> Tensor:
    """(B_i, B_t) scores; both sides are rows of unit length with their mask, as `padded` gives them."""
    (regions, is_region), (words, is_word) = images, captions
    if coding in ("t2i", "i2t"):
        return _cross_attention(regions, is_region, words, is_word, coding == "t2i")
    count, dim = regions.shape[0], regions.shape[2]
    flat = regions.reshape(-1, dim) @ words.reshape(-1, dim).T
    similarity = flat.reshape(count, regions.shape[1], len(words), -1).permute(0, 2, 1, 3)
    real = is_region[:, None, :, None] & is_word[None, :, None, :]
    if coding == "vha":
        return _pooled(similarity.masked_fill(~real, OUTSIDE).max(2)[0], pooling, beta)
    if coding == "tha":
        return _pooled(similarity.masked_fill(~real, OUTSIDE).max(3)[0], pooling, beta)
    weight = (similarity / alpha).masked_fill(~real, -torch.inf).softmax(3).masked_fill(~real, 0.0)
    attended = weight @ words  # (B_i, B_t, K, D)
    cosine = (attended * regions[:, None]).sum(3) / (attended.norm(dim=3) + 1e-8)
    return _pooled(cosine.masked_fill(~is_region[:, None], OUTSIDE), pooling, beta)


def _pooled(values: Tensor, pooling: str, beta: float) -> Tensor:
    """(B_i, B_t) of (B_i, B_t, values)."""
    outside = values == OUTSIDE
    if pooling == "max":
        return values.max(2)[0]
    if pooling == "lse":
        return torch.logsumexp(values.masked_fill(outside, -torch.inf) / beta, 2)
    if pooling == "softmax":
        weight = (values.masked_fill(outside, -torch.inf) / beta).softmax(2)
        return (weight * values.masked_fill(outside, 0.0)).sum(2)
    total = values.masked_fill(outside, 0.0).sum(2)
    return total if pooling == "sum" else total / (~outside).sum(2)


def _cross_attention(
    regions: Tensor, is_region: Tensor, words: Tensor, is_word: Tensor, from_text: bool
) -> Tensor:
    """SCAN's attention, averaged over words (text to image) or regions; all images have the same regions here."""
    if not bool(is_region.all()):
        raise ValueError("the published cross-attention does not mask regions: images must be equally long")
    columns = []
    for caption, length in zip(words, is_word.sum(1).tolist(), strict=True):
        own = caption[:length].expand(len(regions), -1, -1)
        queries, keys = (own, regions) if from_text else (regions, own)
        attention = leaky_relu(keys @ queries.transpose(1, 2), 0.1)
        attention = normalize(attention, dim=2).transpose(1, 2)
        attended = (9.0 * attention).softmax(2) @ keys
        columns.append(cosine_similarity(queries, attended, dim=2).mean(1))
    return torch.stack(columns, 1)


def published_gpo(rows: Tensor, is_row: Tensor, weights: PositionWeights) -> Tensor:
    """(B, D): VSE-infinity's pooling of padded rows (B, longest, D) with their mask, with these parameters."""
    lengths, longest = is_row.sum(1), rows.shape[1]
    places = position_encodings(longest).to(rows).expand(len(rows), -1, -1)
    sequences = pack_padded_sequence(places, lengths.cpu(), batch_first=True, enforce_sorted=False)
    forwards, backwards = pad_packed_sequence(weights.gru(sequences)[0], batch_first=True)[0].chunk(2, dim=2)
    scores = weights.linear((forwards + backwards) / 2).masked_fill(~is_row[:, :, None], -10000.0)
    ordered = rows.masked_fill(~is_row[:, :, None], -10000.0).sort(dim=1, descending=True)[0]
    return (ordered.masked_fill(~is_row[:, :, None], 0.0) * (scores / TEMPERATURE).softmax(1)).sum(1)
