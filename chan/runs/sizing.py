"""The keys of a recipe that follow from the size of the data: for a few hundred or thousand captions.

A batch holds the negatives of its pairs, so that larger is better until an epoch has too few steps. The constants
were measured on 120 and 1,000 photographs (docs/chan.md).
"""

from chan.config import Config
from chan.keys import with_value

SMALLEST_BATCH, LARGEST_BATCH = 16, 128
EPOCH_STEPS = 24  # an epoch should have at least so many steps
RUN_STEPS = 480  # and a run so many
EPOCHS = (10, 40)  # fewest and most

SIZED_KEYS = ("train.batch_size", "train.epochs", "train.lr_decay_epoch")
"""Keys that may be null in a configuration; a run's config.yaml has their values."""


def fill_sizes(config: Config, captions: int) -> Config:
    """The configuration with a value for each of `SIZED_KEYS` that is null in it.

    The batch is the largest power of two that leaves `EPOCH_STEPS` steps in an epoch, the number of epochs makes
    about `RUN_STEPS` steps, and the learning rate falls after two thirds of them.

    >>> from chan.config import load_config
    >>> train = fill_sizes(load_config("small"), 480).train
    >>> train.batch_size, train.epochs, train.lr_decay_epoch
    (16, 16, 11)

    Args:
        config: the configuration.
        captions: of the training split.
    """
    train = config.train
    batch = train.batch_size if train.batch_size is not None else _batch_size(captions)
    fewest, most = EPOCHS
    epochs = train.epochs
    if epochs is None:
        epochs = min(most, max(fewest, round(RUN_STEPS / steps_per_epoch(captions, batch))))
    decay = train.lr_decay_epoch if train.lr_decay_epoch is not None else round(2 * epochs / 3)
    for name, value in zip(SIZED_KEYS, (batch, epochs, decay), strict=True):
        config = with_value(config, name, value)
    return config


def steps_per_epoch(captions: int, batch_size: int) -> int:
    """The number of whole batches in an epoch; one if the captions are fewer than a batch."""
    return max(1, captions // batch_size)


def _batch_size(captions: int) -> int:
    size = LARGEST_BATCH
    while size > SMALLEST_BATCH and captions // size < EPOCH_STEPS:
        size //= 2
    return size
