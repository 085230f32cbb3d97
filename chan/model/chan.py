"""The model: an image encoder, a text encoder and the scores between their embeddings.

Shapes: B_i images, B_t captions, R regions, W words, F feature dimension, D joint dimension.
"""

from torch import Tensor, nn

from chan.model.image_encoders import ImageEncoder
from chan.model.text_encoders import BertEncoder, BiGRUEncoder
from chan.packing import Packed
from chan.scoring.pairwise import Scorer


class Chan(nn.Module):
    """An encoder for images, one for captions, and the scorer of their embeddings."""

    def __init__(
        self, image_encoder: ImageEncoder, text_encoder: BiGRUEncoder | BertEncoder, scorer: Scorer
    ) -> None:
        super().__init__()
        self.image_encoder, self.text_encoder, self.scorer = image_encoder, text_encoder, scorer

    @property
    def has_one_vector(self) -> bool:
        """Whether images and captions have one embedding each, instead of one per region and per word."""
        return self.scorer.coding.one_vector

    def forward(self, images: Packed, captions: Packed) -> Tensor:
        """(B_i, B_t) scores of features (R, F) and ids (W,)."""
        return self.score(self.image_encoder(images), self.text_encoder(captions))

    def score(self, images: Packed, captions: Packed, precision: str = "fp32") -> Tensor:
        """(B_i, B_t) scores of embeddings (R, D) and (W, D); `precision` as for `pairwise_scores`."""
        return self.scorer.with_precision(precision)(images, captions)
