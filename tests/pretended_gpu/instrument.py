"""That the pretended GPU sees what it is there to see."""

import pytest
import torch
from torch import nn

from tests.pretended_gpu.device import CUDA, MismatchError, PretendedGPU, backward


def test_a_tensor_on_the_cpu_beside_one_on_the_gpu_is_an_error():
    with PretendedGPU() as gpu, pytest.raises(MismatchError, match=r"aten.add.Tensor: .* \[\(3,\)\]"):
        gpu.empty(3) + torch.ones(3)


def test_numbers_may_be_on_the_cpu_and_the_cpus_tensors_are_real():
    with PretendedGPU() as gpu:
        assert (gpu.empty(3) + torch.tensor(2.0)).device == CUDA
        assert (torch.ones(3) + 1).tolist() == [2, 2, 2]
    assert not gpu.waits


@pytest.mark.parametrize(
    ("work", "reason"),
    [
        (lambda gpu: gpu.empty(3).sum().item(), "a number"),
        (lambda gpu: bool((gpu.empty(3) > 0).any()), "a number"),
        (lambda gpu: gpu.empty(3).nonzero(), "nonzero"),
        (lambda gpu: gpu.empty(3, 4)[gpu.empty(3) > 0], "by mask"),
        (lambda gpu: gpu.empty(3).cpu(), "to the host"),
        (lambda gpu: torch.ones(3).copy_(gpu.empty(3)), "to the host"),
        (lambda gpu: torch.ones(3).to(CUDA), "not from pinned memory"),
        (lambda gpu: torch.ones(3).to(CUDA, non_blocking=True), "not from pinned memory"),
        (lambda gpu: torch.ones(3).pin_memory().to(CUDA), "not at once"),
        (lambda gpu: gpu.empty(3).copy_(torch.ones(3)), "not from pinned memory"),
        (lambda gpu: torch.repeat_interleave(gpu.empty(3, dtype=torch.int64)), "repeat_interleave"),
    ],
)
@pytest.mark.parametrize("inference", [False, True])
def test_waits_are_counted(work, reason, inference):
    with PretendedGPU() as gpu, torch.inference_mode(inference):
        work(gpu)
    [(found, count)] = gpu.waits.items()
    assert reason in found
    assert count == 1


def test_pinned_memory_and_its_views_are_not_waited_for():
    with PretendedGPU() as gpu:
        pinned = torch.ones(3, 4).pin_memory()
        assert pinned[1:].T.to(CUDA, non_blocking=True).shape == (4, 2)
        assert torch.empty(5, pin_memory=True).to(CUDA, non_blocking=True).shape == (5,)
        assert gpu.empty(2, 4).copy_(pinned[1:], non_blocking=True).is_cuda
    assert not gpu.waits


@pytest.mark.parametrize("inference", [False, True])
def test_copies_and_written_bytes_are_counted(inference):
    with PretendedGPU() as gpu, torch.inference_mode(inference):
        rows = torch.ones(6, 4).pin_memory().to(CUDA, torch.float64, non_blocking=True)  # copied as float64
        assert (gpu.copies, gpu.copied, gpu.written) == (1, 192, 0)
        part = rows.T[1:].unflatten(1, (2, 3))  # views cost nothing
        assert (gpu.launches.total(), gpu.written) == (0, 0)
        target = torch.empty_like(part)
        torch.add(part, 1.0, out=target)
        assert (gpu.launches.total(), gpu.written) == (1, 3 * 6 * 8)
        rows.index_copy_(
            0, gpu.empty(2, dtype=torch.int64), gpu.empty(2, 4, dtype=torch.float64)
        )  # two rows of six
        assert (gpu.launches.total(), gpu.written) == (2, 3 * 6 * 8 + 2 * 4 * 8)
        target.sum().item()
        assert gpu.copied == 192 + 8
        gpu.forget()
        assert not gpu.waits
        assert not gpu.launches
        assert gpu.copies == gpu.copied == gpu.written == 0


@pytest.mark.parametrize(
    ("work", "launches", "moved"),
    [
        (lambda gpu: gpu.empty(3, 4) + gpu.empty(4), 1, (12 + 4 + 12) * 4),
        (lambda gpu: gpu.empty(3, 4).relu_(), 1, (12 + 12) * 4),
        (lambda gpu: gpu.empty(3, 4).bfloat16(), 1, 12 * 4 + 12 * 2),
        (lambda gpu: gpu.empty(3, 4)[1:].T.view(2, 2, 2), 0, 0),
        (lambda gpu: gpu.empty(300, 4)[gpu.empty(2, dtype=torch.int64)], 1, 2 * 2 * 4 * 4),
        (lambda gpu: nn.functional.linear(gpu.empty(3, 4), gpu.empty(5, 4)), 1, (12 + 20 + 15) * 4),
    ],
)
@pytest.mark.parametrize("inference", [False, True])
def test_launches_and_bytes_are_counted(work, launches, moved, inference):
    with PretendedGPU() as gpu, torch.inference_mode(inference):
        work(gpu)
    assert (gpu.launches.total(), gpu.moved.total()) == (launches, moved)


def test_backward_gives_autograds_gradients():
    """On the CPU, where both can run: shared inputs, several outputs, and leaves that are used twice."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4))
    x, found = torch.randn(5, 4), []
    for run in (torch.autograd.backward, backward):
        layers.zero_grad()
        first, second = layers(x).chunk(2, dim=1)
        results = [(first * second).sum(1) + layers(x).amax(1), second.exp()]
        run(results, [torch.arange(5.0), torch.ones(5, 2)])
        found.append([parameter.grad.clone() for parameter in layers.parameters()])
    torch.testing.assert_close(found[1], found[0])


def test_everything_is_as_before_afterwards():
    before = torch.empty, torch.cuda.is_available(), torch.Tensor.backward, nn.GRU.forward
    with PretendedGPU():
        assert torch.cuda.is_available()
    assert (torch.empty, torch.cuda.is_available(), torch.Tensor.backward, nn.GRU.forward) == before
