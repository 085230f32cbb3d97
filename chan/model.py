"""The model: an image encoder, a text encoder and the scores between what they give.

Shapes: B_i images, B_t captions, R regions, W words, F feature dimension, D joint dimension.
"""

from torch import Tensor, nn

from chan.bert import load_bert
from chan.config import ModelConfig
from chan.image_encoders import ImageEncoder
from chan.packing import Packed
from chan.pooling import Pooling, make_pooling
from chan.scoring import visual_hard_assignment
from chan.text_encoders import BertEncoder, BiGRUEncoder
from chan.word_ids import BertReader, CaptionReader


class Chan(nn.Module):
    """Encoders for both sides and the pooling of word scores."""

    def __init__(
        self, image_encoder: ImageEncoder, text_encoder: BiGRUEncoder | BertEncoder, pooling: Pooling
    ) -> None:
        super().__init__()
        self.image_encoder, self.text_encoder, self.pooling = image_encoder, text_encoder, pooling

    def forward(self, images: Packed, captions: Packed) -> Tensor:
        """(B_i, B_t) scores of features (R, F) and ids (W,)."""
        return self.score(self.image_encoder(images), self.text_encoder(captions))

    def score(self, images: Packed, captions: Packed) -> Tensor:
        """(B_i, B_t) scores of embeddings (R, D) and (W, D)."""
        return visual_hard_assignment(images, captions, self.pooling)


def build_model(config: ModelConfig, feature_dim: int, reader: CaptionReader, pretrained: bool) -> Chan:
    """The model of a configuration, for features of `feature_dim` numbers and the ids of `reader`.

    `pretrained` gives BERT its own weights, and is needless where a checkpoint will be loaded.
    """
    image_encoder = ImageEncoder(feature_dim, config.dim, config.image.encoder.value)
    text_encoder: BiGRUEncoder | BertEncoder
    if isinstance(reader, BertReader):
        text_encoder = BertEncoder(load_bert(reader.source, pretrained), config.dim)
    else:
        text_encoder = BiGRUEncoder(reader.size, config.text.word_dim, config.dim)
    return Chan(image_encoder, text_encoder, make_pooling(config.pooling.value, config.beta))
