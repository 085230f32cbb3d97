"""Training on a GPU against the CPU, and its feature caches against one another."""

from pathlib import Path

import pytest
import torch

from chan.build import build_schedule, build_step, build_tokenizer
from chan.config import load_config
from chan.data.batches import Batch, TrainingPairs, epoch_order, training_batches
from chan.data.feature_cache import make_cache
from chan.data.splits import open_split
from chan.keys import with_value
from chan.training.distributed import Ranks

pytestmark = pytest.mark.gpu

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def batches_of(dataset: Path, kind: str, device: torch.device, workers: int = 0) -> list[Batch]:
    feature_split = open_split(dataset, "train", None)
    cache = make_cache(feature_split, kind, device)
    tokenizer = build_tokenizer(load_config("scenes"), dataset, feature_split.split.captions)
    pairs = TrainingPairs(feature_split, tokenizer, 0.8, 0.2, 3, None if cache is None else cache.starts)
    return list(training_batches(pairs, 1, epoch_order(len(pairs), 16, 3, 1), workers, device, cache))


@pytest.mark.parametrize("encoder", ["selfattention", "basic"])
@pytest.mark.parametrize("coding", ["vha", "vsa"])
def test_the_gpus_first_step_is_the_cpus(encoder: str, coding: str, dataset: Path, tiny_config: Path) -> None:
    config = load_config(str(tiny_config), [f"model.image.encoder={encoder}", f"model.coding={coding}"])
    config = with_value(config, "model.image.dim", 24)
    tokenizer = build_tokenizer(config, dataset, open_split(dataset, "train", None).split.captions)
    criterion, found = build_schedule(config).criterion(0), []
    for device in (CPU, CUDA):
        step = build_step(config, tokenizer, device, Ranks(), pretrained=True)
        step.model.train()
        loss = step.gradients(batches_of(dataset, "mmap", device)[0], criterion, seed=5)
        found.append([loss.cpu(), *(p.grad.cpu() for p in step.model.parameters() if p.grad is not None)])
    for own, expected in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-2, atol=1e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_lowers_the_loss(precision: str, dataset: Path, tiny_config: Path) -> None:
    config = load_config(str(tiny_config), [f"train.precision={precision}"])
    config = with_value(config, "model.image.dim", 24)
    tokenizer = build_tokenizer(config, dataset, open_split(dataset, "train", None).split.captions)
    step = build_step(config, tokenizer, CUDA, Ranks(), pretrained=True)
    step.model.train()
    batch, criterion = batches_of(dataset, "device", CUDA)[0], build_schedule(config).criterion(0)
    losses = [step(batch, criterion, seed).item() for seed in range(20)]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["memory", "device"])
def test_a_cache_gives_the_gpu_the_files_batches(kind: str, workers: int, dataset: Path) -> None:
    mapped = batches_of(dataset, "mmap", CUDA, workers)
    for own, expected in zip(batches_of(dataset, kind, CUDA, workers), mapped, strict=True):
        for side in ("images", "captions"):
            assert getattr(own, side).rows.is_cuda
            assert torch.equal(getattr(own, side).rows, getattr(expected, side).rows)
            assert torch.equal(getattr(own, side).offsets, getattr(expected, side).offsets)
        assert torch.equal(own.image_of_pair, expected.image_of_pair)
