"""The published formulas that times are compared with give the scores of this project."""

import itertools

import pytest
import torch
from torch.nn.functional import normalize

from benchmarks.published import padded, published_scores
from chan.packing import Packed, pack
from chan.scoring.codings import CODINGS
from chan.scoring.pairwise import pairwise_scores


def embeddings(lengths: list[int], seed: int) -> Packed:
    random = torch.Generator().manual_seed(seed)
    return pack([normalize(torch.randn(n, 8, generator=random, dtype=torch.float64), dim=1) for n in lengths])


@pytest.mark.parametrize(
    ("coding", "pooling"),
    [*itertools.product(CODINGS[:3], ["max", "mean", "sum", "softmax", "lse"]), ("t2i", "mean"), ("i2t", "mean")],
)
def test_published_formulas(coding: str, pooling: str) -> None:
    images = embeddings([4, 4, 4] if coding in ("t2i", "i2t") else [3, 5, 1], 0)
    captions = embeddings([2, 6, 1, 6], 1)
    expected = pairwise_scores(
        images.rows, images.offsets, captions.rows, captions.offsets, coding=coding, pooling=pooling
    )
    found = published_scores(padded(images), padded(captions), coding, pooling)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_published_cross_attention_knows_no_mask() -> None:
    with pytest.raises(ValueError, match="equally long"):
        published_scores(padded(embeddings([3, 5], 0)), padded(embeddings([2], 1)), "t2i")
