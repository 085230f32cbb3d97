"""The GPU benchmark at a tiny size on the CPU, where its works are those without the kernel."""

import argparse

import pytest
import torch
from torch import Tensor

from benchmarks import kernel
from benchmarks.kernel import as_text, evaluation, products, training
from benchmarks.scorers import WORKS, Work, failure, wrong_gradient
from benchmarks.scoring import Problem, make_problem


@pytest.fixture
def problem() -> Problem:
    sizes = argparse.Namespace(images=6, captions=6, regions=5, dim=16)
    return make_problem(sizes, torch.device("cpu"))


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["kernel"])
    with pytest.raises(SystemExit) as stop:
        kernel.main()
    assert stop.value.code == 2
    assert "needs a CUDA device" in capsys.readouterr().err


@pytest.mark.parametrize("measure", [evaluation, training])
def test_tables(measure, problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object) -> Tensor:
        raise ModuleNotFoundError("No module named 'peer'")

    monkeypatch.setitem(WORKS, "peer", Work(absent, "sum"))
    part = measure(problem, problem, "fp32", 1)
    assert part["failures"]["peer"] == "ModuleNotFoundError: No module named 'peer'"
    assert part["flop"] == 2 * 30 * len(problem.captions.rows) * 16
    assert set(part["seconds"]) == set(part["bytes"])
    text = as_text({"parts": [{"title": "six", **part}]})
    for name in ("one matrix product", "kernel, LSE", "tiles of PyTorch, LSE", "kernel, sum", "No module named"):
        assert name in text


def test_wrong_scores_are_not_timed(problem: Problem) -> None:
    right = WORKS["kernel, LSE"]
    for wrong in (
        Work(lambda some, kind: right.scores(some, kind) + 0.5, "lse"),
        Work(lambda some, kind: right.scores(some, kind).T, "lse"),
        Work(WORKS["kernel, sum"].scores, "lse"),
    ):
        assert "scores differ by" in (failure(wrong, problem, torch.float32) or "")
    for kind in (torch.float32, torch.bfloat16):
        for name in ("kernel, LSE", "tiles of PyTorch, LSE", "kernel, sum"):
            assert failure(WORKS[name], problem, kind) is None
            assert wrong_gradient(WORKS[name], problem, kind) is None


def test_wrong_gradients_are_not_timed(problem: Problem) -> None:
    right = WORKS["kernel, sum"]
    wrong = Work(lambda some, kind: 2 * right.scores(some, kind) - right.scores(some, kind).detach(), "sum")
    assert failure(wrong, problem, torch.float32) is None
    assert wrong_gradient(wrong, problem, torch.float32) == "gradients differ by 1 of their norm"


def test_the_limit_multiplies_all(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "PIECE", 4)
    pieces = []
    monkeypatch.setattr(torch, "mm", lambda left, right, out: pieces.append((len(left), right.shape[1], len(out))))
    products(problem, torch.float32)()
    assert sum(rows for rows, _, _ in pieces) == len(problem.captions.rows)
    assert all(columns == 30 and rows == written <= 8 for rows, columns, written in pieces)
