from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
WANTING = "needs the real data in"  # begins the reason of each test that is skipped for want of them


def shared(name: str) -> Path:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{WANTING} {name}, which the project does not carry")
    return path


@pytest.fixture(scope="session")
def flickr8k():
    """1,000 photographs, captions and features."""
    return shared("flickr8k_1k")


@pytest.fixture(scope="session")
def coco_samples():
    """Ten photographs of COCO."""
    return shared("coco_samples")


@pytest.fixture(scope="session")
def scan_vocabularies():
    """SCAN's published vocabularies."""
    return shared("vocab")


@pytest.fixture(scope="session")
def visual_genome_vocabularies():
    """The 1,600 object and 400 attribute names, as published."""
    return shared("visual_genome")


def pytest_terminal_summary(terminalreporter):
    """Say how many tests did not run for want of data that lie outside the repository."""
    reasons = [report.longrepr[2] for report in terminalreporter.stats.get("skipped", ())]
    count = sum(WANTING in reason for reason in reasons)
    terminalreporter.write_line(f"{count} tests were skipped for want of data outside the repository")


@pytest.fixture(scope="session")
def cases() -> Path:
    """Small inputs that are odd or damaged."""
    folder = SHARED.with_name("cases")
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    return folder
