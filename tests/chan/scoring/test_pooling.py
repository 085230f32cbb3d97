import math

import pytest
import torch

from chan.scoring.pooling import make_pooling, pool

LN2, LN3 = math.log(2), math.log(3)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("max", [LN3, 0.5]),
        ("mean", [(0 + LN3) / 2, 0.5]),
        ("sum", [LN3, 0.5]),
        ("softmax", [0.75 * LN3, 0.5]),  # weights 1/4 and 3/4
        ("lse", [2 * LN2, 0.5]),  # log(1 + 3)
    ],
)
def test_by_hand(name: str, expected: list[float]) -> None:
    """A caption of two words with values 0 and log 3, then one of a single word; beta 1."""
    values = torch.tensor([[0.0], [LN3], [0.5]])
    found = pool(values, torch.tensor([0, 2, 3]), make_pooling(name, beta=1.0))
    torch.testing.assert_close(found[:, 0], torch.tensor(expected))


@pytest.mark.parametrize("name", ["softmax", "lse"])
def test_large_values_do_not_overflow(name: str) -> None:
    values = torch.tensor([[200.0], [100.0], [200.0]])
    found = pool(values, torch.tensor([0, 2, 3]), make_pooling(name, beta=0.1))
    torch.testing.assert_close(found[:, 0], torch.tensor([2000.0, 2000.0] if name == "lse" else [200.0] * 2))
