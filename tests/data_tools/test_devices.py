from contextlib import nullcontext

import pytest
import torch

from data_tools import devices
from data_tools.devices import resolve_device, runs_triton


@pytest.fixture
def no_cuda(monkeypatch):
    """PyTorch finds no GPU: the driver is too old."""

    def init():
        raise RuntimeError("The NVIDIA driver on your system\nis too old (found version 11040).")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def gpu_file(tmp_path, monkeypatch):
    """The second of the two files by which a machine is known to have a GPU."""
    files = (tmp_path / "version", tmp_path / "nvidia0")
    files[1].touch()
    monkeypatch.setattr(devices, "NVIDIA_FILES", files)
    return files[1]


@pytest.mark.usefixtures("no_cuda", "gpu_file")
def test_auto_says_that_a_gpu_cannot_be_used(capsys):
    assert resolve_device("auto").type == "cpu"
    output = capsys.readouterr()
    assert output.err.startswith("note: this machine has an NVIDIA GPU, which PyTorch cannot use (The NVIDIA ")
    assert "system is too old (found version 11040)); --device auto takes the CPU" in output.err
    assert output.err.count("\n") == 1
    assert output.out == ""


@pytest.mark.usefixtures("no_cuda")
@pytest.mark.parametrize("case", ["no gpu", "hidden", "asked for the CPU"])
def test_nothing_is_said_without_a_reason(case, gpu_file, monkeypatch, capsys):
    if case == "no gpu":
        gpu_file.unlink()
    if case == "hidden":
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert resolve_device("cpu" if case == "asked for the CPU" else "auto").type == "cpu"
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("gpu_file")
def test_a_gpu_that_can_be_used_is_taken(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto").type == "cuda"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("device", "cuda", "capability", "error", "runs"),
    [
        ("cuda", "13.0", (9, 0), None, True),
        ("cuda", "13.0", (7, 0), None, False),
        ("cuda", None, (9, 0), None, False),
        ("cpu", "13.0", (9, 0), None, False),
        ("cuda", "13.0", (9, 0), RuntimeError("Failed to find C compiler"), False),
    ],
)
def test_where_a_kernel_runs(device, cuda, capability, error, runs, monkeypatch):
    """Where it cannot be started there is one warning; where it could not run it is not tried."""
    pytest.importorskip("triton")
    tried = []

    def trial():
        tried.append(True)
        if error:
            raise error

    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    warning = "scoring runs without its GPU kernel and is slower: Failed to find C"
    with pytest.warns(match=warning) if error else nullcontext():
        assert runs_triton(torch.device(device), trial, "scoring") == runs
    assert bool(tried) == (runs or error is not None)
