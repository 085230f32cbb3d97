import pytest

from tests.pretended_gpu.device import pretend_kernel


@pytest.fixture(params=["kernel", "no kernel"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether hard assignment has its kernel, which is not started."""
    runs = request.param == "kernel"
    pretend_kernel(monkeypatch, runs)
    return runs
