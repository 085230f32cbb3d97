"""Whole training steps, from a batch in pinned memory to updated weights, on the pretended GPU."""

from typing import Any

import pytest
import torch

from chan.data.batches import Batch
from chan.model.aggregation import Aggregation
from chan.model.chan import Chan
from chan.model.image_encoders import ImageEncoder
from chan.model.text_encoders import BertEncoder, BiGRUEncoder
from chan.packing import Packed, offsets_of
from chan.scoring.pairwise import Scorer
from chan.training.losses import contrastive, infonce
from chan.training.optimizer import make_optimizer
from chan.training.step import TrainingStep
from tests.pretended_gpu.device import CUDA, PretendedGPU

PAIRS, FEATURES, WORDS, DIM = 12, 24, 20, 16


def make_batch() -> Batch:
    random = torch.Generator().manual_seed(0)
    regions, words = (torch.randint(2, most, (PAIRS,), generator=random) for most in (9, 12))
    images = Packed(torch.zeros(int(regions.sum()), FEATURES), offsets_of(regions))
    captions = Packed(torch.ones(int(words.sum()), dtype=torch.int64), offsets_of(words))
    return Batch(images, captions, torch.arange(PAIRS) // 2)


def step_on(gpu: PretendedGPU, image: str, text: str, coding: str, **options: Any) -> TrainingStep:
    gpo = coding == "global"
    pools = [Aggregation("gpo") if gpo else None for _ in range(2)]
    encoder: BiGRUEncoder | BertEncoder = BiGRUEncoder(WORDS, 6, DIM, aggregation=pools[0])
    if text == "bert":
        from transformers import BertConfig, BertModel

        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        encoder = BertEncoder(BertModel(BertConfig(vocab_size=WORDS, **sizes)), DIM, aggregation=pools[0])
    images = ImageEncoder(FEATURES, DIM, image, aggregation=pools[1])
    model = Chan(images, encoder, Scorer.from_names(coding, "mean" if gpo else "lse")).train()
    gpu.move(model)
    return TrainingStep(model, make_optimizer(model, 1e-3, 0.1, 0.01), CUDA, **options)


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
    if text == "bert":  # transformers does not look into a mask that is fake
        from transformers import masking_utils

        monkeypatch.setattr(masking_utils, "is_tracing", lambda *_: False)
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
