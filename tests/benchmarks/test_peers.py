"""The comparison with other packages, at a tiny size: absent ones are listed, wrong ones are not timed."""

import argparse

import pytest
import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.peers import WORKS, as_text, backward_times, forward_times
from benchmarks.scorers import Work, failure, wrong_gradient
from benchmarks.scoring import Problem, make_problem


@pytest.fixture
def problem() -> Problem:
    sizes = argparse.Namespace(images=6, captions=7, regions=5, dim=16)
    return make_problem(sizes, torch.device("cpu"))


def test_tables(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object) -> Tensor:
        raise ModuleNotFoundError("No module named 'peer'")

    right = WORKS["here"].scores
    monkeypatch.setitem(WORKS, "late-interaction-kernels", Work(absent, "sum"))
    monkeypatch.setitem(WORKS, "flash-maxsim", Work(lambda some, kind: right(some, kind) + 1, "sum"))
    document = {
        "forward": forward_times(problem, problem.first(3), 1),
        "forward and backward": backward_times(problem, problem.first(3), 1),
    }
    for part in document.values():
        assert {"published formulas", "here"} <= set(part["seconds"])
        assert not {"late-interaction-kernels", "flash-maxsim"} & set(part["seconds"])
    text = as_text(document)
    assert text.count("No module named 'peer'") == 2
    assert text.count("scores differ by") == 2


@pytest.mark.parametrize("name", ["late-interaction-kernels", "flash-maxsim"])
def test_installed_packages_agree(name: str, problem: Problem) -> None:
    pytest.importorskip(name.replace("-", "_"), reason=f"{name} is not installed")
    assert failure(peers.WORKS[name], problem, torch.float32) is None
    assert wrong_gradient(peers.WORKS[name], problem, torch.float32) is None
