"""Whole training steps, from a batch in pinned memory to updated weights, on the pretended GPU."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from chan.data.batches import Batch
from chan.data.feature_cache import FeatureCache
from chan.model.aggregation import Aggregation
from chan.model.chan import Chan
from chan.model.image_encoders import ImageEncoder
from chan.model.text_encoders import BertEncoder, BiGRUEncoder
from chan.packing import Packed, offsets_of
from chan.scoring.pairwise import Scorer
from chan.training.distributed import Ranks
from chan.training.losses import contrastive, infonce
from chan.training.optimizer import make_optimizer
from chan.training.step import TrainingStep
from tests.pretended_gpu.budgets import Counts, Stage
from tests.pretended_gpu.device import CUDA, PretendedGPU
from tests.pretended_gpu.scoring import a_batch

PAIRS = 12


@dataclass(frozen=True)
class Sizes:
    """Numbers of a feature, words of the vocabulary, numbers of a word vector, D, and those of a BERT."""

    features: int
    words: int
    word_dim: int
    dim: int
    bert: dict[str, int]


SMALL_BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
TINY = Sizes(24, 20, 6, 16, SMALL_BERT)
FULL = Sizes(2048, 11_353, 300, 1024, {"num_hidden_layers": 4})  # the recipes of COCO; a third of BERT-base


def make_batch(sizes: Sizes = TINY) -> Batch:
    random = torch.Generator().manual_seed(0)
    regions, words = (torch.randint(2, most, (PAIRS,), generator=random) for most in (9, 12))
    return batch_of(regions, words, sizes)


def batch_of(regions: torch.Tensor, words: torch.Tensor, sizes: Sizes) -> Batch:
    """Images with so many regions and captions with so many words, two captions of each image."""
    images = Packed(torch.zeros(int(regions.sum()), sizes.features), offsets_of(regions))
    captions = Packed(torch.ones(int(words.sum()), dtype=torch.int64), offsets_of(words))
    return Batch(images, captions, torch.arange(len(regions)) // 2)


def model_on(gpu: PretendedGPU, image: str, text: str, coding: str, sizes: Sizes = TINY) -> Chan:
    gpo = coding == "global"
    with torch.device("meta"):
        pools = [Aggregation("gpo") if gpo else None for _ in range(2)]
        encoder: BiGRUEncoder | BertEncoder
        if text == "bert":
            from transformers import BertConfig, BertModel

            bert = BertModel(BertConfig(vocab_size=sizes.words, **sizes.bert))
            encoder = BertEncoder(bert, sizes.dim, aggregation=pools[0])
        else:
            encoder = BiGRUEncoder(sizes.words, sizes.word_dim, sizes.dim, aggregation=pools[0])
        images = ImageEncoder(sizes.features, sizes.dim, image, aggregation=pools[1])
    model = Chan(images, encoder, Scorer.from_names(coding, "mean" if gpo else "lse"))
    gpu.move(model)
    return model


def step_on(
    gpu: PretendedGPU, image: str, text: str, coding: str, sizes: Sizes = TINY, **options: Any
) -> TrainingStep:
    model = model_on(gpu, image, text, coding, sizes).train()
    return TrainingStep(model, make_optimizer(model, 1e-3, 0.1, 0.01), CUDA, **options)


def look_into_masks(patch: pytest.MonkeyPatch) -> None:
    """Let transformers inspect a mask that is fake, as it does one on a GPU."""
    from transformers import masking_utils

    patch.setattr(masking_utils, "is_tracing", lambda *_: False)


def hardest(scores: torch.Tensor, negatives: torch.Tensor) -> torch.Tensor:
    return contrastive(scores, negatives, 0.2, hardest=True)


def all_pairs(scores: torch.Tensor, negatives: torch.Tensor) -> torch.Tensor:
    return contrastive(scores, negatives, 0.2, hardest=False)


def information(scores: torch.Tensor, negatives: torch.Tensor) -> torch.Tensor:
    return infonce(scores, negatives, 0.1, 0.5)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(
    ("image", "text", "coding", "chunks", "criterion"),
    [
        ("basic", "bigru", "vha", 1, hardest),
        ("selfattention", "bigru", "tha", 3, all_pairs),
        ("transformer", "bert", "vha", 1, information),
        ("basic", "bigru", "vsa", 1, all_pairs),
        ("mlp", "bigru", "global", 1, hardest),
    ],
)
def test_a_step_waits_for_winners_and_berts_mask_alone(
    image, text, coding, chunks, precision, criterion, monkeypatch
) -> None:
    if text == "bert":
        look_into_masks(monkeypatch)
    with PretendedGPU() as gpu:
        step = step_on(gpu, image, text, coding, precision=precision, grad_cache_chunks=chunks)
        gpu.waits.clear()
        batch = make_batch().pin_memory().to(CUDA)
        loss = step(batch, criterion, seed=5)
    assert loss.is_cuda
    assert all(parameter.grad is not None and parameter.grad.is_cuda for parameter in step.model.parameters())
    winners = ["the size of nonzero at chan/scoring/hard_assignment.py"] if coding in ("vha", "tha") else []
    mask = ["a number at chan/model/text_encoders.py"] if text == "bert" else []
    assert sorted(wait.rsplit(":", 1)[0] for wait in gpu.waits.elements()) == mask + winners


def exchange_with_itself(patch: pytest.MonkeyPatch) -> None:
    """Two processes that train together, of which the other one has the same batch."""

    def all_gather(parts: list[torch.Tensor], own: torch.Tensor) -> None:
        for part in parts:
            part.copy_(own)

    patch.setattr(torch.distributed, "all_gather", all_gather)
    patch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor.mul_(2))


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize(("coding", "waits"), [("vha", 1), ("vsa", 0), ("global", 0)])
def test_two_processes_wait_no_more_often_than_one(coding: str, waits: int, monkeypatch) -> None:
    exchange_with_itself(monkeypatch)
    with PretendedGPU() as gpu:
        step = step_on(gpu, "basic", "bigru", coding)
        step.ranks = Ranks(1, 2)
        gpu.waits.clear()
        step(make_batch().pin_memory().to(CUDA), hardest, seed=5)
    assert gpu.waits.total() == waits, gpu.waits
    assert all(parameter.grad is not None for parameter in step.model.parameters())


@pytest.mark.parametrize("cached", ["cpu", "cuda"])
def test_a_feature_cache_fills_a_batch_without_a_wait(cached: str) -> None:
    with PretendedGPU() as gpu:
        rows = gpu.empty(50, 24) if cached == "cuda" else torch.zeros(50, 24)
        positions = Packed(torch.tensor([3, 4, 30]).pin_memory(), torch.tensor([0, 2, 3]))
        filled = FeatureCache(rows, np.array([0])).fill(positions, CUDA).to(CUDA)
    assert filled.rows.is_cuda
    assert filled.rows.shape == (3, 24)
    assert not gpu.waits


def recipe_step(
    image: str, text: str, coding: str, pairs: int, keep: float, ranks: int, gpu: PretendedGPU
) -> Callable[[], Any]:
    """A recipe's step in bfloat16, of a batch in pinned memory as the data loader gives it."""
    step = step_on(gpu, image, text, coding, FULL, precision="bf16")
    step.ranks = Ranks(0, ranks)
    batch = batch_of(*a_batch(pairs, keep), FULL).pin_memory()

    def work() -> None:
        with pytest.MonkeyPatch.context() as patch:
            exchange_with_itself(patch)
            if text == "bert":
                look_into_masks(patch)
            step(batch.to(CUDA), hardest, seed=0)

    work()  # the optimizer then has its state
    return work


STAGES = [
    Stage(
        "training step, CHAN with a GRU, 384 pairs",
        partial(recipe_step, "selfattention", "bigru", "vha", 384, 0.8, 1),
        Counts(1, 400, 92, 4400),
    ),
    Stage(
        "training step, CHAN with a GRU, 2 x 192 pairs",
        partial(recipe_step, "selfattention", "bigru", "vha", 192, 0.8, 2),
        Counts(1, 420, 47, 2500),
    ),
    Stage(
        "training step, CHAN with BERT, 4 layers, 128 pairs",
        partial(recipe_step, "basic", "bert", "vha", 128, 0.8, 1),
        Counts(2, 960, 32, 3000),
    ),
    Stage(
        "training step, VSE-infinity, 128 pairs",
        partial(recipe_step, "mlp", "bigru", "global", 128, 0.8, 1),
        Counts(0, 850, 32, 1200),
    ),
    Stage(
        "training step, SCAN t2i, 128 pairs",
        partial(recipe_step, "basic", "bigru", "t2i", 128, 1.0, 1),
        Counts(0, 1400, 39, 3400),
    ),
]


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_a_stage_keeps_its_budget(stage: Stage) -> None:
    stage.check()
