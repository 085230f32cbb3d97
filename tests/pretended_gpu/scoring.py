"""Scores of all pairs: every coding, pooling and precision on the pretended GPU, and what they ask of it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from chan.packing import Packed, offsets_of
from chan.scoring.codings import CODINGS, GLOBAL
from chan.scoring.hard_assignment import best_keys
from chan.scoring.pairwise import PRECISIONS, Scorer, pairwise_scores
from chan.scoring.soft_assignment import NORMS
from tests.pretended_gpu.budgets import Counts, Stage
from tests.pretended_gpu.device import PretendedGPU

DIM = 32
IMAGES, CAPTIONS = torch.tensor([36, 20, 36, 7]), torch.tensor([9, 4, 12, 9, 5])
HARD = ("vha", "tha")
POOLINGS = ["max", "mean", "sum", "softmax", "lse", "scan_lse"]


def sides_on(gpu: PretendedGPU, gradient: bool = False, one_vector: bool = False) -> tuple[Packed, Packed]:
    return packed_on(gpu, (IMAGES, CAPTIONS), DIM, gradient, one_vector)


def packed_on(
    gpu: PretendedGPU,
    sides: tuple[torch.Tensor, torch.Tensor],
    dim: int,
    gradient: bool = False,
    one_vector: bool = False,
) -> tuple[Packed, Packed]:
    images, captions = (
        Packed(gpu.empty(int(lengths.sum()), dim, requires_grad=gradient), offsets_of(lengths))
        for lengths in (torch.ones_like(side) if one_vector else side for side in sides)
    )
    return images, captions


def a_batch(pairs: int, keep: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """The regions of each image, of 36 about `keep`, and the words of each caption: 8 to 20."""
    random = torch.Generator().manual_seed(0)
    regions = (torch.rand(pairs, 36, generator=random) < keep).sum(1).clamp(min=1)
    return regions, torch.randint(8, 21, (pairs,), generator=random)


def check_scores(coding: str, pooling: str, precision: str, gradient: bool) -> None:
    """Scores wait for nothing, gradients of hard assignment once: for the number of winners."""
    scorer = Scorer.from_names(coding, pooling, precision=precision)
    with PretendedGPU() as gpu:
        images, captions = sides_on(gpu, gradient, one_vector=coding == GLOBAL)
        scores = scorer(images, captions)
        assert not gpu.waits
        if gradient:
            scores.sum().backward()
    assert scores.is_cuda
    assert scores.shape == (4, 5)
    assert scores.dtype == torch.float32
    for side in (images, captions) if gradient else ():
        assert side.rows.grad is not None
        assert side.rows.grad.is_cuda
        assert side.rows.grad.shape == side.rows.shape
    assert gpu.waits.total() == (gradient and coding in HARD)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("coding", HARD)
def test_every_pooling_of_hard_assignment(coding: str, precision: str) -> None:
    for pooling in POOLINGS:
        check_scores(coding, pooling, precision, gradient=False)
        check_scores(coding, pooling, precision, gradient=True)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("coding", [coding for coding in (*CODINGS, GLOBAL) if coding not in HARD])
def test_every_pooling_of_the_other_codings(coding: str, precision: str) -> None:
    for pooling in POOLINGS:
        check_scores(coding, pooling, precision, gradient=False)
        if precision == "fp32" or pooling == "scan_lse":
            check_scores(coding, pooling, precision, gradient=True)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("coding", ["t2i", "i2t"])
def test_every_normalisation_of_similarities(coding: str, norm: str) -> None:
    with PretendedGPU() as gpu:
        images, captions = sides_on(gpu)
        scores = Scorer.from_names(coding, "scan_lse", similarity_norm=norm)(images, captions)
    assert scores.is_cuda
    assert not gpu.waits


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_rows_in_half_precision_give_scores_in_float32(kind: torch.dtype) -> None:
    with PretendedGPU() as gpu:
        sides = [side.with_rows(side.rows.to(kind)) for side in sides_on(gpu)]
        ends = [part for side in sides for part in (side.rows, side.offsets)]
        scores = pairwise_scores(*ends, coding="vsa")
    assert scores.is_cuda
    assert scores.dtype == torch.float32
    assert not gpu.waits


def test_rows_that_come_to_the_cpu_are_waited_for() -> None:
    """They are read at once; a copy that is not waited for may not have ended by then."""
    with PretendedGPU() as gpu:
        sides_on(gpu)[0].to(torch.device("cpu"))
    assert gpu.waits.total() == 1


@pytest.mark.usefixtures("kernel")
def test_the_best_keys_are_found_without_a_wait() -> None:
    with PretendedGPU() as gpu:
        images, captions = sides_on(gpu)
        best, position = best_keys(captions.rows, images)
    assert best.shape == position.shape == (39, 4)
    assert not gpu.waits


def scoring(coding: str, pairs: int, gradient: bool, gpu: PretendedGPU) -> Callable[[], Any]:
    """Scores of images of 29 regions on average with as many captions, D 1024, products in bfloat16."""
    images, captions = packed_on(gpu, a_batch(pairs, keep=0.8), 1024, gradient, coding == GLOBAL)
    scorer = Scorer.from_names(coding, "lse", precision="bf16")

    def work() -> None:
        scores = scorer(images, captions)
        if gradient:
            scores.sum().backward()

    return work


def scoring_stage(coding: str, pairs: int, gradient: bool, budget: Counts) -> Stage:
    name = f"scores{' and gradient' * gradient}, {coding}, {pairs} x {pairs}"
    return Stage(name, partial(scoring, coding, pairs, gradient), budget)


STAGES = [
    scoring_stage("vha", 384, False, Counts(0, 44, 0.25, 150)),
    scoring_stage("tha", 384, False, Counts(0, 44, 0.2, 155)),
    scoring_stage("vsa", 128, False, Counts(0, 340, 0.05, 230)),
    scoring_stage("t2i", 128, False, Counts(0, 350, 0.05, 350)),
    scoring_stage("i2t", 128, False, Counts(0, 390, 0.05, 360)),
    scoring_stage(GLOBAL, 128, False, Counts(0, 10, 0, 1)),
    scoring_stage("vha", 384, True, Counts(1, 150, 0.25, 850)),
    scoring_stage("tha", 384, True, Counts(1, 150, 0.2, 1300)),
    scoring_stage("vsa", 128, True, Counts(0, 1500, 0.05, 2100)),
    scoring_stage(GLOBAL, 128, True, Counts(0, 22, 0, 4)),
]


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_a_stage_keeps_its_budget(stage: Stage) -> None:
    stage.check()
