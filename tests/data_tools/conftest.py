import numpy as np
import pytest

from data_tools.store.schema import REGION_COLUMNS, Block


@pytest.fixture(scope="session")
def make_block():
    """Builds a block of random columns for given ids and region counts."""

    def make_block(image_ids, counts, dim=3, dtype="float32", seed=0):
        rng = np.random.default_rng(seed)
        rows = int(sum(counts))
        regions = {"features": rng.normal(size=(rows, dim)).astype(dtype)}
        for name, (kind, trailing) in REGION_COLUMNS.items():
            low = 1 if name == "box_confidence" else 0  # 0 says that there is no box
            regions[name] = rng.integers(low, 100, (rows, *trailing)).astype(kind)
        sizes = rng.integers(1, 999, (len(image_ids), 2)).astype(np.int32)
        return Block(list(image_ids), np.array(counts, dtype=np.int64), regions, sizes)

    return make_block


@pytest.fixture(scope="session")
def write_split():
    """Writes a split's ids and captions, a line each."""

    def write_split(folder, ids, captions, name="dev"):
        (folder / f"{name}_ids.txt").write_text("".join(f"{line}\n" for line in ids))
        (folder / f"{name}_caps.txt").write_text("".join(f"{line}\n" for line in captions))

    return write_split
