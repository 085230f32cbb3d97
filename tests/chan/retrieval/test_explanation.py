from pathlib import Path

import numpy as np
import pytest
import torch

from chan.build import build_model
from chan.config import ModelConfig
from chan.data.splits import open_split
from chan.packing import pack
from chan.retrieval.explanation import explain, image_files, is_content_word, picked_regions
from chan.text.tokenizers import VocabularyTokenizer
from data_tools.captions.vocabulary import Vocabulary
from data_tools.errors import InputError

CPU = torch.device("cpu")


def test_content_words() -> None:
    words = ["<start>", "A", "red", "square", "n't", ",", "and", "2", "dogs", ".", "<end>"]
    assert [word for word in words if is_content_word(word)] == ["red", "square", "2", "dogs"]


def test_the_most_similar_piece_of_a_word_decides() -> None:
    regions = pack([torch.eye(3)])
    pieces = pack([torch.tensor([[0.1, 0.9, 0.0], [0.0, 0.2, 0.95], [0.8, 0.0, 0.1]])])
    assert picked_regions(regions, pieces, [[0], [0, 1], [1, 2], [2]]) == [1, 2, 2, 0]


def test_rows_name_the_best_images_and_the_picked_boxes(dataset: Path) -> None:
    opened = open_split(dataset, "test", None)
    reader = VocabularyTokenizer(Vocabulary.build(opened.split.captions, threshold=1))
    torch.manual_seed(0)
    model = build_model(ModelConfig(dim=16), 24, reader, pretrained=False)
    rows = explain(model, opened, reader, image_files(dataset, opened), CPU)
    assert len(rows) == 8
    assert rows[0].words[1:-1] == opened.split.captions[0].lower().split()
    captions = [0, 4, 8, 12, 17, 21, 25, 29]  # evenly spaced over 30
    with torch.inference_mode():
        for row, caption in zip(rows, captions, strict=True):
            ids = [index for _, own in reader.words([opened.split.captions[caption]])[0] for index in own]
            words = model.text_encoder(pack([torch.tensor(ids)]))
            scores = []
            for image in range(6):
                regions = model.image_encoder(pack([torch.from_numpy(opened.gather(np.array([image])))]))
                scores.append(model.score(regions, words).item())
            best = np.argsort(scores)[::-1][:3]
            assert [answer.file.stem for answer in row.answers] == [opened.split.image_ids[i] for i in best]
            assert [answer.correct for answer in row.answers] == (best == caption // 5).tolist()
            assert row.rank == 1 + sum(score > scores[caption // 5] for score in scores)
            regions = model.image_encoder(pack([torch.from_numpy(opened.gather(np.array([best[0]])))]))
            picked = (words.rows @ regions.rows.T).argmax(1)[row.content]
            np.testing.assert_array_equal(row.answers[0].boxes, opened.boxes(best[0])[picked])


def test_features_without_boxes_are_one_clear_line(dataset: Path, tmp_path: Path) -> None:
    stored = open_split(dataset, "test", None)
    np.save(tmp_path / "test_ims.npy", np.ones((6, 3, 24), dtype=np.float32))
    opened = open_split(dataset, "test", tmp_path / "test_ims.npy")
    reader = VocabularyTokenizer(Vocabulary.build(stored.split.captions, threshold=1))
    model = build_model(ModelConfig(dim=16), 24, reader, pretrained=False)
    with pytest.raises(InputError, match=r"test_ims\.npy: holds no boxes"):
        explain(model, opened, reader, image_files(dataset, opened), CPU)
