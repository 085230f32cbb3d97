from collections.abc import Callable

import pytest
import torch

from chan.scoring import hard_assignment


@pytest.fixture(params=["kernel", "no kernel"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether hard assignment has its kernel, which is not started: it has to be given what is on the GPU."""
    runs = request.param == "kernel"
    monkeypatch.setattr(hard_assignment, "_triton_runs", lambda device: runs)
    if runs:
        triton = pytest.importorskip("chan.scoring.hard_assignment_triton", exc_type=ImportError)
        monkeypatch.setattr(triton, "_best_products", _Unstarted())
    return runs


class _Unstarted:
    """A kernel of Triton that only looks at its arguments."""

    def __getitem__(self, programs: tuple[int]) -> Callable[..., None]:
        assert programs[0] > 0
        return self._check

    def _check(self, *arguments: object, **settings: int) -> None:
        tensors = [argument for argument in arguments if isinstance(argument, torch.Tensor)]
        assert len(tensors) == 5
        assert all(tensor.is_cuda and tensor.is_contiguous() for tensor in tensors)
