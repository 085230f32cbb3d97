from pathlib import Path

import numpy as np
import pytest
import torch

from chan.build import build_model
from chan.config import CodingName, ModelConfig, PoolingName
from chan.data.splits import FeatureSplit, open_split
from chan.evaluation.evaluate import encode
from chan.packing import pack
from chan.retrieval.explanation import Explainer, chosen_captions, image_files, position_of
from chan.retrieval.retriever import Retriever
from chan.retrieval.words import is_content_word
from chan.text.tokenizers import VocabularyTokenizer
from data_tools.captions.vocabulary import Vocabulary
from data_tools.errors import InputError

CPU = torch.device("cpu")


def test_content_words() -> None:
    words = ["<start>", "A", "red", "square", "n't", ",", "and", "2", "dogs", ".", "<end>"]
    assert [word for word in words if is_content_word(word)] == ["red", "square", "2", "dogs"]


@pytest.fixture
def retriever(dataset: Path) -> Retriever:
    captions = open_split(dataset, "test", None).split.captions
    tokenizer = VocabularyTokenizer(Vocabulary.build(captions, threshold=1))
    torch.manual_seed(0)
    return Retriever(build_model(ModelConfig(dim=16), 24, tokenizer, pretrained=False).eval(), tokenizer, 24, CPU)


def explainer_of(retriever: Retriever, opened: FeatureSplit, data: Path) -> Explainer:
    regions, _ = encode(retriever.model, opened, retriever.tokenizer, CPU)
    return Explainer(retriever, opened, image_files(data, opened), regions)


def test_rows_name_the_best_images_and_the_picked_boxes(dataset: Path, retriever: Retriever) -> None:
    opened, model = open_split(dataset, "test", None), retriever.model
    captions = chosen_captions(opened.split, None, 8)
    assert captions == [0, 4, 8, 12, 17, 21, 25, 29]  # evenly spaced over 30
    rows = explainer_of(retriever, opened, dataset).of_captions(captions)
    assert rows[0].words[1:-1] == opened.split.captions[0].lower().split()
    with torch.inference_mode():
        for row, caption in zip(rows, captions, strict=True):
            ids = [
                index for _, own in retriever.tokenizer.words([opened.split.captions[caption]])[0] for index in own
            ]
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
            picked = (words.rows @ regions.rows.T).argmax(1)[row.content].tolist()
            assert [match.region for match in row.answers[0].matches] == picked
            boxes = np.array([match.box for match in row.answers[0].matches])
            np.testing.assert_array_equal(boxes, opened.boxes(best[0])[picked])


@pytest.mark.parametrize("coding", ["t2i", "i2t"])
def test_scan_shows_its_attention(coding: str, dataset: Path, retriever: Retriever) -> None:
    """The region that a word attends to most (t2i), or that attends most to the word (i2t)."""
    config = ModelConfig(dim=16, coding=CodingName[coding], pooling=PoolingName.scan_lse, lambda_softmax=4.0)
    model = build_model(config, 24, retriever.tokenizer, pretrained=False).eval()
    opened = open_split(dataset, "test", None)
    explainer = explainer_of(Retriever(model, retriever.tokenizer, 24, CPU), opened, dataset)
    row = explainer.explain(opened.split.captions[7], images=1)
    image = opened.split.image_ids.index(row.answers[0].file.stem)
    words = explainer.retriever.encode_captions([opened.split.captions[7]]).rows.numpy()
    table = explainer.regions.slice(image, image + 1).rows.numpy() @ words.T
    table = np.where(table > 0, table, 0.1 * table)
    axis = 1 if coding == "t2i" else 0
    shares = np.exp(4 * table / np.linalg.norm(table, axis=axis, keepdims=True))
    shares /= shares.sum(1 - axis, keepdims=True)
    matches = row.answers[0].matches
    assert [match.region for match in matches] == shares.argmax(0)[row.content].tolist()
    assert [match.value for match in matches] == pytest.approx(shares.max(0)[row.content].tolist(), abs=1e-5)


def test_a_sentence_of_ones_own_has_no_right_image(dataset: Path, retriever: Retriever) -> None:
    opened = open_split(dataset, "test", None)
    row = explainer_of(retriever, opened, dataset).explain(opened.split.captions[7], images=5)
    assert row.rank is None
    assert [answer.correct for answer in row.answers] == 5 * [False]
    assert [answer.score for answer in row.answers] == sorted((a.score for a in row.answers), reverse=True)


def test_one_image_and_its_captions(dataset: Path, retriever: Retriever) -> None:
    opened = open_split(dataset, "test", None)
    image = position_of(opened.split, opened.split.image_ids[2])
    assert image == 2
    captions = chosen_captions(opened.split, image, 8)
    assert captions == [10, 11, 12, 13, 14]
    rows = explainer_of(retriever, opened, dataset).of_captions(captions, [image])
    assert [[answer.file.stem for answer in row.answers] for row in rows] == 5 * [[opened.split.image_ids[2]]]
    assert all(row.answers[0].correct for row in rows)
    with pytest.raises(InputError, match="--image 77: the split test has no such image"):
        position_of(opened.split, "77")


def test_features_without_boxes_are_one_clear_line(dataset: Path, retriever: Retriever, tmp_path: Path) -> None:
    np.save(tmp_path / "test_ims.npy", np.ones((6, 3, 24), dtype=np.float32))
    opened = open_split(dataset, "test", tmp_path / "test_ims.npy")
    with pytest.raises(InputError, match=r"test_ims\.npy: holds no boxes"):
        explainer_of(retriever, opened, dataset)
