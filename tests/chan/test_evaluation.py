from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from chan import evaluation
from chan.config import ModelConfig
from chan.evaluation import as_document, recall_of, score_split
from chan.model import build_model
from chan.packing import pack
from chan.splits import FeatureSplit, check_dim, open_split
from chan.word_ids import VocabularyReader
from data_tools.errors import InputError
from data_tools.features import FeatureStore
from data_tools.vocabulary import Vocabulary

CPU = torch.device("cpu")


@pytest.fixture
def opened(dataset: Path) -> FeatureSplit:
    return open_split(dataset, "test", None)


def reader_of(opened: FeatureSplit) -> VocabularyReader:
    return VocabularyReader(Vocabulary.build(opened.split.captions, threshold=1))


def test_scores_are_those_of_single_pairs(opened: FeatureSplit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "BATCH", 4)
    reader = reader_of(opened)
    torch.manual_seed(0)
    model = build_model(ModelConfig(dim=16), opened.features.dim, reader, pretrained=False)
    scores = score_split(model, opened, reader, CPU)
    assert scores.shape == (6, 30)
    assert scores.dtype == torch.float32
    for image, caption in [(0, 0), (3, 17), (5, 29), (1, 4)]:
        words = reader.words([opened.split.captions[caption]])[0]
        ids = torch.tensor([index for _, own in words for index in own])
        alone = model(pack([torch.from_numpy(opened.regions(image))]), pack([ids]))
        torch.testing.assert_close(scores[image, caption], alone[0, 0], rtol=1e-4, atol=1e-4)


def test_each_image_is_read_once(opened: FeatureSplit, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: Counter[int] = Counter()
    read = FeatureStore.read

    def counted(self: FeatureStore, row: int) -> np.ndarray:
        reads[row] += 1
        return read(self, row)

    monkeypatch.setattr(FeatureStore, "read", counted)
    reader = reader_of(opened)
    model = build_model(ModelConfig(dim=16), opened.features.dim, reader, pretrained=False)
    score_split(model, opened, reader, CPU)
    assert dict(reads) == {int(row): 1 for row in opened.rows}


def test_the_document_of_a_perfect_score(opened: FeatureSplit) -> None:
    right = opened.split.caption_images == np.arange(6)[:, None]
    document = as_document(recall_of(torch.from_numpy(right).float(), opened))
    side = {"r1": 100.0, "r5": 100.0, "r10": 100.0, "medr": 1.0, "meanr": 1.0}
    assert document == {"rsum": 600.0, "i2t": side, "t2i": side}


def test_features_of_another_dimension_are_refused(opened: FeatureSplit) -> None:
    with pytest.raises(InputError, match=r"features\.h5: features of 24 numbers.* expects 2048"):
        check_dim(opened, 2048)
