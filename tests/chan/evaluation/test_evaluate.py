from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from chan.build import build_model
from chan.config import ModelConfig
from chan.data.splits import FeatureSplit, caption_batch, check_dim, image_batch, open_split, read_captions
from chan.evaluation import evaluate as evaluation
from chan.evaluation.evaluate import (
    as_document,
    as_table,
    embedding_blocks,
    evaluate,
    load_scores,
)
from chan.evaluation.recall import matrix_blocks, measure
from chan.packing import pack
from chan.text.tokenizers import BertTokenizer, VocabularyTokenizer
from data_tools.captions.vocabulary import Vocabulary
from data_tools.errors import InputError, UsageError
from data_tools.store.reading import FeatureStore

CPU = torch.device("cpu")


@pytest.fixture
def opened(dataset: Path) -> FeatureSplit:
    return open_split(dataset, "test", None)


def reader_of(opened: FeatureSplit) -> VocabularyTokenizer:
    return VocabularyTokenizer(Vocabulary.build(opened.split.captions, threshold=1))


def test_scores_are_those_of_single_pairs(opened: FeatureSplit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "BATCH", 4)
    reader = reader_of(opened)
    torch.manual_seed(0)
    model = build_model(ModelConfig(dim=16), opened.features.dim, reader, pretrained=False)
    scores = evaluation.score(model, *evaluation.encode(model, opened, reader, CPU))
    assert scores.shape == (6, 30)
    assert scores.dtype == torch.float32
    for image, caption in [(0, 0), (3, 17), (5, 29), (1, 4)]:
        words = reader.words([opened.split.captions[caption]])[0]
        ids = torch.tensor([index for _, own in words for index in own])
        alone = model(pack([torch.from_numpy(opened.gather(np.array([image])))]), pack([ids]))
        torch.testing.assert_close(scores[image, caption], alone[0, 0], rtol=1e-4, atol=1e-4)


def test_an_evaluation_rounds_no_product_to_tf32(opened: FeatureSplit) -> None:
    reader, found = reader_of(opened), set()
    model = build_model(ModelConfig(dim=16), opened.features.dim, reader, pretrained=False)
    hooks = [
        module.register_forward_hook(lambda *_: found.add(torch.backends.cuda.matmul.fp32_precision))
        for module in (model.image_encoder, model.text_encoder)
    ]
    evaluation.encode(model, opened, reader, CPU)
    for hook in hooks:
        hook.remove()
    assert found == {"ieee"}


@pytest.mark.parametrize("bert", [False, True])
def test_embeddings_come_in_the_splits_order(
    bert: bool, opened: FeatureSplit, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are made by length; each equals what the encoders make of its image or caption alone."""
    monkeypatch.setattr(evaluation, "BATCH", 4)
    reader = BertTokenizer(request.getfixturevalue("bert_folder")) if bert else reader_of(opened)
    torch.manual_seed(0)
    model = build_model(ModelConfig(dim=16), opened.features.dim, reader, pretrained=False).eval()
    regions, words = evaluation.encode(model, opened, reader, CPU)
    assert (len(regions), len(words)) == (6, 30)
    own = read_captions(opened, reader)
    with torch.inference_mode():
        for image in range(6):
            alone = model.image_encoder(image_batch(opened, np.array([image])))
            torch.testing.assert_close(regions.slice(image, image + 1).rows, alone.rows, rtol=0, atol=1e-6)
        for caption in range(30):
            alone = model.text_encoder(caption_batch(own, reader, np.array([caption])))
            torch.testing.assert_close(words.slice(caption, caption + 1).rows, alone.rows, rtol=0, atol=1e-6)


def test_each_image_is_read_once(opened: FeatureSplit, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: Counter[int] = Counter()
    gather = FeatureStore.gather

    def counted(self: FeatureStore, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        reads.update(rows.tolist())
        return gather(self, rows, out)

    monkeypatch.setattr(FeatureStore, "gather", counted)
    reader = reader_of(opened)
    model = build_model(ModelConfig(dim=16), opened.features.dim, reader, pretrained=False)
    evaluation.encode(model, opened, reader, CPU)
    assert dict(reads) == {int(row): 1 for row in opened.rows}


def test_the_document_of_a_perfect_score(opened: FeatureSplit) -> None:
    right = opened.split.caption_images == np.arange(6)[:, None]
    document = as_document(measure(torch.from_numpy(right).float(), torch.from_numpy(opened.split.caption_images)))
    side = {"r1": 100.0, "r5": 100.0, "r10": 100.0, "medr": 1.0, "meanr": 1.0}
    assert document == {"rsum": 600.0, "i2t": side, "t2i": side}


def test_features_of_another_dimension_are_refused(opened: FeatureSplit) -> None:
    with pytest.raises(InputError, match=r"features\.h5: features of 24 numbers.* expects 2048"):
        check_dim(opened, 2048)


def random_scores(opened: FeatureSplit) -> torch.Tensor:
    shape = len(opened.split.image_ids), len(opened.split.captions)
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def test_folds_are_the_averages_of_their_parts(opened: FeatureSplit) -> None:
    scores = random_scores(opened)
    found = evaluate(opened.split, 3, matrix_blocks(scores), seed=0)
    parts = [
        measure(scores[2 * k : 2 * k + 2, 10 * k : 10 * k + 10], torch.arange(2).repeat_interleave(5))
        for k in range(3)
    ]
    assert found.recall.rsum == pytest.approx(sum(part.rsum for part in parts) / 3)
    assert found.recall.t2i.medr == pytest.approx(sum(part.t2i.medr for part in parts) / 3)
    assert found.intervals.rsum[0] <= found.recall.rsum <= found.intervals.rsum[1]
    assert "95 %" in as_table(found.recall, found.chance, found.intervals)


def test_folds_need_no_matrix(opened: FeatureSplit) -> None:
    reader = reader_of(opened)
    torch.manual_seed(0)
    model = build_model(ModelConfig(dim=16), opened.features.dim, reader, pretrained=False)
    regions, words = evaluation.encode(model, opened, reader, CPU)
    scores = evaluation.score(model, regions, words)
    for folds in (1, 2, 3):
        blocks = evaluate(opened.split, folds, embedding_blocks(model, regions, words), seed=0)
        assert blocks == evaluate(opened.split, folds, matrix_blocks(scores), seed=0)


def test_validation_measures_the_whole_split(opened: FeatureSplit) -> None:
    reader = reader_of(opened)
    torch.manual_seed(0)
    model = build_model(ModelConfig(dim=16), opened.features.dim, reader, pretrained=False)
    scores = evaluation.score(model, *evaluation.encode(model, opened, reader, CPU))
    expected = measure(scores, torch.from_numpy(opened.split.caption_images))
    assert evaluation.measure(model, opened, reader, CPU) == expected


def test_the_precision_is_that_of_the_products(opened: FeatureSplit) -> None:
    reader = reader_of(opened)
    torch.manual_seed(0)
    model = build_model(ModelConfig(dim=16), opened.features.dim, reader, pretrained=False)
    regions, words = evaluation.encode(model, opened, reader, CPU)
    exact, rough = (evaluation.score(model, regions, words, kind) for kind in ("fp32", "bf16"))
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, exact)
    torch.testing.assert_close(rough, exact, rtol=0.02, atol=0.02)
    block = embedding_blocks(model, regions, words, "bf16")(range(2, 5), torch.tensor([4, 0]))
    torch.testing.assert_close(block, rough[2:5, [4, 0]])


def test_folds_must_divide_the_images(opened: FeatureSplit) -> None:
    with pytest.raises(UsageError, match="--folds 4: does not divide the 6 images of split test"):
        evaluate(opened.split, 4, matrix_blocks(random_scores(opened)), seed=0)


def test_scores_of_another_shape_or_kind_are_refused(opened: FeatureSplit, tmp_path: Path) -> None:
    path = tmp_path / "scores.npy"
    np.save(path, random_scores(opened).numpy())
    assert torch.equal(load_scores(path, opened.split), random_scores(opened))
    np.save(path, np.zeros((30, 6), dtype=np.float32))
    with pytest.raises(
        InputError, match=r"expected floats of shape \(6, 30\) for split test, found float32 \(30, 6\)"
    ):
        load_scores(path, opened.split)
    np.save(path, np.array({"npts": 6, "sims": np.zeros((6, 30))}), allow_pickle=True)  # the public code's form
    with pytest.raises(InputError, match="not a NumPy array file"):
        load_scores(path, opened.split)
    np.savez(tmp_path / "many.npz", a=np.zeros(2))
    with pytest.raises(InputError, match="an archive of arrays"):
        load_scores(tmp_path / "many.npz", opened.split)
    with pytest.raises(InputError, match="none"):
        load_scores(tmp_path / "none.npy", opened.split)


@pytest.mark.parametrize("header", ["{'descr': '<f4', 'shape': (2, 2", "(1,", "x" * 50])
def test_a_damaged_header_of_scores_is_one_line(opened: FeatureSplit, tmp_path: Path, header: str) -> None:
    text = header.encode() + b"\n"
    (tmp_path / "s.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(99))
    with pytest.raises(InputError, match=r"s\.npy: not a NumPy array file: ") as caught:
        load_scores(tmp_path / "s.npy", opened.split)
    assert "\n" not in str(caught.value)
