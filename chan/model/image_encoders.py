"""Region features to region embeddings: a projection, with attention among an image's regions or a perceptron.

An aggregation makes one embedding of those of an image.

Shapes: B images, R regions of all images, K regions of the image with most, F feature dimension, D joint
dimension, H heads.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from chan.model.aggregation import Aggregation
from chan.model.embeddings import finished
from chan.packing import Packed
from data_tools.devices import to_device

HEADS = 8


class ImageEncoder(nn.Module):
    """A projection to the joint space, attention among the regions of each image, and normalisation.

    Args:
        feature_dim: F.
        dim: D, a multiple of 8 unless `encoder` is basic.
        encoder: basic (the projection alone), selfattention, transformer, or mlp (a perceptron beside it).
        normalise: whether embeddings are scaled to unit length.
        aggregation: makes one embedding of those of an image's regions; None keeps them.
    """

    def __init__(
        self,
        feature_dim: int,
        dim: int,
        encoder: str,
        normalise: bool = True,
        aggregation: Aggregation | None = None,
    ) -> None:
        super().__init__()
        self.normalise = normalise
        self.fc = nn.Linear(feature_dim, dim)
        nn.init.xavier_uniform_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)
        self.feedforward: nn.Module | None = None
        self.mlp = perceptron(feature_dim, dim) if encoder == "mlp" else None
        if encoder in ATTENTION:
            self.feedforward = ATTENTION[encoder](dim)
        self.aggregation = aggregation

    def forward(self, images: Packed) -> Packed:
        """Features (R, F) of any floating type to embeddings (R, D), or (B, D) with an aggregation."""
        features = images.rows.to(self.fc.weight.dtype)
        rows = self.fc(features)
        if self.mlp is not None:
            rows = rows + self.mlp(features)
        regions = images.with_rows(rows)
        if self.feedforward is not None:
            regions = self.feedforward(regions)
        return finished(regions, self.aggregation, self.normalise)


def perceptron(feature_dim: int, dim: int) -> nn.Sequential:
    """Two linear layers with batch normalisation and ReLU between them (VSE-infinity's, Chen et al. 2021)."""
    hidden = dim // 2
    return nn.Sequential(nn.Linear(feature_dim, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, dim))


class SelfAttention(nn.Module):
    """x + attention(layer norm of x) among the regions of each image."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.ln = nn.LayerNorm(dim)
        self.attn = nn.MultiheadAttention(dim, HEADS)

    def forward(self, regions: Packed) -> Packed:
        """Embeddings (R, D) to embeddings (R, D)."""
        return regions.with_rows(regions.rows + attend(self.attn, regions.with_rows(self.ln(regions.rows))))


class Transformer(nn.Module):
    """A pre-norm transformer layer: attention, then a perceptron with 4 D hidden units, each with a residual."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(dim)
        self.attn = nn.MultiheadAttention(dim, HEADS)
        self.ln_2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), QuickGELU(), nn.Linear(4 * dim, dim))

    def forward(self, regions: Packed) -> Packed:
        """Embeddings (R, D) to embeddings (R, D)."""
        rows = regions.rows + attend(self.attn, regions.with_rows(self.ln_1(regions.rows)))
        return regions.with_rows(rows + self.mlp(self.ln_2(rows)))


ATTENTION: dict[str, type[SelfAttention] | type[Transformer]] = {
    "selfattention": SelfAttention,
    "transformer": Transformer,
}


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the approximation that CLIP uses (Hendrycks and Gimpel 2016)."""

    def forward(self, rows: Tensor) -> Tensor:
        """Any shape."""
        return rows * torch.sigmoid(1.702 * rows)


def attend(attention: nn.MultiheadAttention, regions: Packed) -> Tensor:
    """(R, D): self-attention among the regions of each image, with the weights of `attention`.

    The projections, nearly all of the work, run on packed rows. Only queries, keys and values are padded, to
    (B, H, K, D / H), with the padding masked as keys and dropped as queries.
    """
    projected = linear(regions.rows, attention.in_proj_weight, attention.in_proj_bias)
    images = len(regions)
    mask = None
    if regions.is_even():
        places = None
        padded = projected.unflatten(0, (images, -1))
    else:
        places = to_device(regions.padded_places(), projected.device)
        longest = int(regions.lengths.max())
        padded = projected.new_zeros(images * longest, projected.shape[1])
        padded = padded.index_copy(0, places, projected).unflatten(0, (images, longest))
        valid = torch.arange(longest) < regions.lengths[:, None]
        mask = to_device(valid, projected.device)[:, None, None]  # (B, 1, 1, K): which keys are regions
    heads = padded.unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    mixed = scaled_dot_product_attention(heads[0], heads[1], heads[2], attn_mask=mask)
    mixed = mixed.transpose(1, 2).flatten(0, 1).flatten(1)
    if places is not None:
        mixed = mixed.index_select(0, places)
    return attention.out_proj(mixed)
