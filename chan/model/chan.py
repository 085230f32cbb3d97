"""The model: an image encoder, a text encoder and the scores between what they give.

Shapes: B_i images, B_t captions, R regions, W words, F feature dimension, D joint dimension.
"""

import sys
from pathlib import Path

from torch import Tensor, nn

from chan.config import ModelConfig
from chan.model.image_encoders import ImageEncoder
from chan.model.text_encoders import BertEncoder, BiGRUEncoder
from chan.packing import Packed
from chan.scoring.pairwise import Scoring
from chan.text.bert import load_bert
from chan.text.tokenizers import BertTokenizer, CaptionTokenizer, VocabularyTokenizer
from chan.text.word_vectors import start_with_word_vectors


class Chan(nn.Module):
    """Encoders for both sides, and how their embeddings are scored."""

    def __init__(
        self, image_encoder: ImageEncoder, text_encoder: BiGRUEncoder | BertEncoder, scoring: Scoring
    ) -> None:
        super().__init__()
        self.image_encoder, self.text_encoder, self.scoring = image_encoder, text_encoder, scoring

    def forward(self, images: Packed, captions: Packed) -> Tensor:
        """(B_i, B_t) scores of features (R, F) and ids (W,)."""
        return self.score(self.image_encoder(images), self.text_encoder(captions))

    def score(self, images: Packed, captions: Packed, precision: str = "float32") -> Tensor:
        """(B_i, B_t) scores of embeddings (R, D) and (W, D); `precision` as for `pairwise_scores`."""
        return self.scoring(images, captions, precision)


def build_model(
    config: ModelConfig, feature_dim: int, reader: CaptionTokenizer, pretrained: bool, say: bool = True
) -> Chan:
    """The model of a configuration, for features of `feature_dim` numbers and the ids of `reader`.

    `pretrained` gives BERT its own weights, or the GRU its word vectors (with `say`, how many of its words have
    one is printed); it is needless where a checkpoint will be loaded.
    """
    image_encoder = ImageEncoder(feature_dim, config.dim, config.image.encoder.value, config.image.normalise)
    text_encoder: BiGRUEncoder | BertEncoder
    if isinstance(reader, BertTokenizer):
        text_encoder = BertEncoder(load_bert(reader.source, pretrained), config.dim, config.text.normalise)
    else:
        assert isinstance(reader, VocabularyTokenizer)
        text_encoder = BiGRUEncoder(reader.size, config.text.word_dim, config.dim, config.text.normalise)
        if pretrained and config.text.word_vectors is not None:
            found = start_with_word_vectors(
                text_encoder.embed, reader.vocabulary.words, Path(config.text.word_vectors)
            )
            if say:
                print(f"word vectors: {found} of {reader.size} words found", file=sys.stderr, flush=True)
    scoring = Scoring(config.coding.value, config.pooling.value, config.alpha, config.beta)
    return Chan(image_encoder, text_encoder, scoring)
