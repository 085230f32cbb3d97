import pytest
import torch

from chan.packing import Packed, offsets_of
from chan.scoring.codings import CODINGS
from chan.scoring.hard_assignment import best_keys
from chan.scoring.pairwise import Scorer, pairwise_scores
from tests.pretended_gpu.device import PretendedGPU

DIM = 32
IMAGES, CAPTIONS = torch.tensor([36, 20, 36, 7]), torch.tensor([9, 4, 12, 9, 5])
POOLINGS = ["max", "mean", "sum", "softmax", "lse", "scan_lse"]


def sides_on(gpu: PretendedGPU, gradient: bool = False) -> tuple[Packed, Packed]:
    images, captions = (
        Packed(gpu.empty(int(lengths.sum()), DIM, requires_grad=gradient), offsets_of(lengths))
        for lengths in (IMAGES, CAPTIONS)
    )
    return images, captions


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("coding", CODINGS)
def test_scores_are_computed_on_the_gpu_without_a_wait(coding: str, precision: str, gradient: bool) -> None:
    with PretendedGPU() as gpu:
        images, captions = sides_on(gpu, gradient)
        scores = pairwise_scores(
            images.rows, images.offsets, captions.rows, captions.offsets, coding=coding, precision=precision
        )
    assert scores.is_cuda
    assert scores.shape == (4, 5)
    assert scores.dtype == torch.float32
    assert not gpu.waits


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_pooling_waits_for_nothing(pooling: str) -> None:
    with PretendedGPU() as gpu:
        images, captions = sides_on(gpu)
        Scorer.from_names("t2i", pooling)(images, captions)
    assert not gpu.waits


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize(("coding", "waits"), [("vha", 1), ("tha", 1), ("vsa", 0), ("t2i", 0), ("i2t", 0)])
def test_the_gradient_waits_once_for_the_number_of_winners(coding: str, waits: int) -> None:
    with PretendedGPU() as gpu:
        images, captions = sides_on(gpu, gradient=True)
        Scorer.from_names(coding)(images, captions).sum().backward()
    for side in (images, captions):
        assert side.rows.grad is not None
        assert side.rows.grad.shape == side.rows.shape
    assert sum(gpu.waits.values()) == waits


def test_rows_that_come_to_the_cpu_are_waited_for() -> None:
    """They are read at once; a copy that is not waited for may not have ended by then."""
    with PretendedGPU() as gpu:
        sides_on(gpu)[0].to(torch.device("cpu"))
    assert sum(gpu.waits.values()) == 1


@pytest.mark.usefixtures("kernel")
def test_the_best_keys_are_found_without_a_wait() -> None:
    with PretendedGPU() as gpu:
        images, captions = sides_on(gpu)
        best, position = best_keys(captions.rows, images)
    assert best.shape == position.shape == (39, 4)
    assert not gpu.waits
