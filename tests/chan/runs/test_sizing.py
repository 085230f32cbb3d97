"""Sizes that follow from the number of captions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chan.config import Config, load_config, override
from chan.data.batches import epoch_order
from chan.runs.sizing import (
    EPOCH_STEPS,
    EPOCHS,
    LARGEST_BATCH,
    RUN_STEPS,
    SMALLEST_BATCH,
    fill_sizes,
    steps_per_epoch,
)


@given(st.integers(min_value=2, max_value=600_000))
def test_the_sizes_of_any_data(captions: int) -> None:
    train = fill_sizes(load_config("small"), captions).train
    assert train.batch_size is not None
    assert train.epochs is not None
    assert train.lr_decay_epoch is not None
    assert train.batch_size in (16, 32, 64, 128)
    steps = steps_per_epoch(captions, train.batch_size)
    # A larger batch would leave too few steps, unless there is none.
    assert train.batch_size == LARGEST_BATCH or captions // (2 * train.batch_size) < EPOCH_STEPS
    assert train.batch_size == SMALLEST_BATCH or steps >= EPOCH_STEPS
    assert EPOCHS[0] <= train.epochs <= EPOCHS[1]
    if EPOCHS[0] < train.epochs < EPOCHS[1]:
        assert abs(train.epochs * steps - RUN_STEPS) <= steps / 2
    assert 0 < train.lr_decay_epoch < train.epochs


@pytest.mark.parametrize("captions", [5, 16, 100, 4000])
@pytest.mark.parametrize("batch", [16, 100])
def test_steps_are_those_of_an_epoch(captions: int, batch: int) -> None:
    assert steps_per_epoch(captions, batch) == len(epoch_order(captions, batch, 0, 0))


def test_what_is_given_is_kept() -> None:
    config = override(load_config("small"), ["train.epochs=3", "train.batch_size=40"])
    train = fill_sizes(config, 480).train
    assert (train.epochs, train.batch_size, train.lr_decay_epoch) == (3, 40, 2)
    assert fill_sizes(Config(), 480) == Config()
