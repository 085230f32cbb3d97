"""Encoding, ranks, CxC's comparisons and searches on the pretended GPU, and what they ask of it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chan.data.splits import FeatureSplit
from chan.evaluation import cxc, recall
from chan.evaluation import evaluate as evaluation
from chan.model.aggregation import Aggregation
from chan.packing import Packed, offsets_of
from chan.retrieval.retriever import Retriever
from chan.retrieval.scan import scan_chunks
from chan.retrieval.words import Word
from chan.scoring.codings import CODINGS, GLOBAL
from chan.text.tokenizers import VocabularyTokenizer
from data_tools.captions.splits import Split
from data_tools.captions.vocabulary import Vocabulary
from tests.pretended_gpu.budgets import Counts, Stage
from tests.pretended_gpu.device import CUDA, PretendedGPU, pretend_kernel
from tests.pretended_gpu.scoring import packed_on
from tests.pretended_gpu.training import FULL, TINY, Sizes, look_into_masks, model_on

WORDS = ["a", "red", "square", "beside", "two", "circles"]


@pytest.fixture(autouse=True)
def _with_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_kernel(monkeypatch)


@dataclass(frozen=True)
class Zeros:
    """Features of zeros, which cost no memory before they are copied."""

    counts: np.ndarray
    dim: int

    def gather(self, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        return np.zeros((int(self.counts[rows].sum()), self.dim), np.float16)


def split_of(images: int, sizes: Sizes) -> FeatureSplit:
    """Images of 10 to 36 regions with five captions each."""
    random = np.random.default_rng(0)
    captions = [" ".join(random.choice(WORDS, random.integers(6, 19))) for _ in range(5 * images)]
    split = Split("test", [str(image) for image in range(images)], captions, np.arange(5 * images) // 5)
    features: Any = Zeros(random.integers(10, 37, images), sizes.features)
    return FeatureSplit(split, features, np.arange(images), Path("features.h5"))


def tokenizer() -> VocabularyTokenizer:
    return VocabularyTokenizer(Vocabulary.build(WORDS, threshold=1))


@pytest.mark.parametrize("coding", ["vha", GLOBAL])
@pytest.mark.parametrize("text", ["bigru", "bert"])
@pytest.mark.parametrize("image", ["basic", "selfattention", "transformer", "mlp"])
def test_a_split_is_evaluated(image: str, text: str, coding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From features and captions to recall with its intervals; only BERT looks into its mask for each batch."""
    if text == "bert":
        look_into_masks(monkeypatch)
    opened = split_of(20, TINY)
    with PretendedGPU() as gpu:
        model = model_on(gpu, image, text, coding)
        regions, words = evaluation.encode(model, opened, tokenizer(), CUDA)
        encoding = gpu.waits.total()
        found = evaluation.evaluate(opened.split, 2, evaluation.embedding_blocks(model, regions, words, "bf16"), 0)
    assert regions.rows.is_cuda
    assert words.rows.is_cuda
    assert encoding == 1 + (text == "bert"), gpu.waits  # whether all is finite; 100 captions are one batch
    assert gpu.waits.total() == encoding + 2, gpu.waits  # one for the ranks of each fold
    assert len(found.ranking.t2i) == 100
    assert 0 <= found.intervals.rsum[0] <= found.intervals.rsum[1] <= 600


@pytest.mark.parametrize("name", ["gpo", "mean", "max"])
@pytest.mark.parametrize("lengths", [[3, 1, 4], [2, 2]], ids=str)
def test_an_aggregation_waits_for_nothing(name: str, lengths: list[int]) -> None:
    with PretendedGPU() as gpu, torch.no_grad():
        with torch.device("meta"):
            aggregation = Aggregation(name)
        gpu.move(aggregation)
        for _ in range(2):  # the second time GPO knows its weights
            found = aggregation(Packed(gpu.empty(sum(lengths), 8), offsets_of(torch.tensor(lengths))))
    assert found.rows.shape == (len(lengths), 8)
    assert found.rows.is_cuda
    assert not gpu.waits


@pytest.mark.parametrize("coding", ["vha", "i2t", GLOBAL])
def test_images_and_captions_are_compared_within_cxc(coding: str) -> None:
    answers = [np.array([place ^ 1]) if place < 300 else np.empty(0, np.int64) for place in range(310)]
    with PretendedGPU() as gpu:
        model = model_on(gpu, "basic", "bigru", coding)
        lengths = torch.ones(310, dtype=torch.int64) if coding == GLOBAL else torch.arange(310) % 5 + 1
        items = Packed(gpu.empty(int(lengths.sum()), 16), offsets_of(lengths))
        found = cxc.SimilarItems(answers, answers).measure(model, items, items, "bf16")
    assert set(found) == {"CxC R@1", "CxC R@5", "CxC R@10"}
    assert gpu.waits.total() == 2, gpu.waits  # one for images, one for captions


def chunks_of(images: int, dim: int, regions: int = 36) -> list[tuple[np.ndarray, Packed]]:
    """An index in groups as `ImageIndex.chunks` gives them."""
    per_chunk = (1 << 12) // regions
    chunks = []
    for first in range(0, images, per_chunk):
        count = min(per_chunk, images - first)
        rows = torch.zeros(1, dtype=torch.float16).expand(count * regions, dim)
        chunks.append((np.arange(first, first + count), Packed(rows, torch.arange(count + 1) * regions)))
    return chunks


@pytest.mark.parametrize("coding", CODINGS)
def test_an_index_is_scanned_with_one_wait(coding: str) -> None:
    with PretendedGPU() as gpu:
        model = model_on(gpu, "basic", "bigru", coding)
        queries = packed_on(gpu, (torch.tensor([1]), torch.tensor([5, 3])), 16)[1]
        gpu.waits.clear()
        positions, scores = scan_chunks(chunks_of(500, 16), model.scorer, queries)
    assert positions.tolist() == list(range(500))
    assert scores.shape == (2, 500)
    assert gpu.waits.total() == 1, gpu.waits


@pytest.mark.parametrize("coding", [*CODINGS, GLOBAL])
def test_a_caption_is_encoded_scored_and_explained(coding: str) -> None:
    """The two waits of an explanation are for its values and its regions."""
    with PretendedGPU() as gpu:
        retriever = Retriever(model_on(gpu, "basic", "bigru", coding), tokenizer(), TINY.features, CUDA)
        images = retriever.encode_images([np.zeros((4, TINY.features), np.float32)] * 3)
        caption = retriever.encode_captions(["a red square"])
        assert not gpu.waits
        assert retriever.score(images, caption).shape == (3, 1)
        words = [Word("red", (1,)), Word("square", (2,))]
        found = retriever.explain(images.slice(0, 1), caption, words, np.zeros((4, 4), np.float32))
    assert len(found) == (0 if coding == GLOBAL else 2)
    assert gpu.waits.total() == (0 if coding == GLOBAL else 2)


def encoding(gpu: PretendedGPU) -> Callable[[], Any]:
    model, opened = model_on(gpu, "selfattention", "bigru", "vha", FULL), split_of(256, FULL)
    return lambda: evaluation.encode(model, opened, tokenizer(), CUDA)


def ranking(gpu: PretendedGPU) -> Callable[[], Any]:
    model = model_on(gpu, "basic", "bigru", "vha", TINY)
    words = torch.randint(8, 21, (25_000,), generator=torch.Generator().manual_seed(0))
    embeddings = packed_on(gpu, (torch.full((5000,), 36), words), 1024)
    scorer = evaluation.embedding_blocks(model, *embeddings, "bf16")
    return torch.inference_mode()(lambda: recall.rank(scorer, 5000, torch.arange(25_000) // 5))


def comparing(gpu: PretendedGPU) -> Callable[[], Any]:
    model = model_on(gpu, "basic", "bigru", "vha", TINY)
    answers = [np.array([place ^ 1, place ^ 2]) for place in range(1000)]
    [images, _] = packed_on(gpu, (torch.full((1000,), 36), torch.tensor([1])), 1024)
    scorer = partial(cxc._scores, model, images, "bf16")
    return torch.inference_mode()(lambda: cxc.rank(answers, scorer))


def scanning(gpu: PretendedGPU) -> Callable[[], Any]:
    model = model_on(gpu, "basic", "bigru", "vha", TINY)
    queries = packed_on(gpu, (torch.tensor([1]), torch.tensor([12])), 1024)[1]
    return lambda: scan_chunks(chunks_of(2000, 1024), model.scorer, queries)


STAGES = [
    Stage("encoding 256 images and 1,280 captions", encoding, Counts(1, 350, 25, 1500)),
    Stage("scores and ranks, 5,000 images, 25,000 captions", ranking, Counts(1, 2450, 45, 46000)),
    Stage("ranks within CxC, 1,000 images", comparing, Counts(1, 170, 1.7, 1300)),
    Stage("scan of 2,000 images for one sentence", scanning, Counts(1, 210, 149, 650)),
]


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_a_stage_keeps_its_budget(stage: Stage) -> None:
    stage.check()
