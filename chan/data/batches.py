"""Training batches: augmented, packed pairs of an image and one of its captions.

Shapes: B pairs, R regions of all images, F feature dimension, W words of all captions.
"""

from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from chan.data.augmentation import changed_words, generator, kept_regions
from chan.data.feature_cache import FeatureCache
from chan.data.splits import FeatureSplit, read_captions
from chan.packing import Packed, offsets_of
from chan.text.tokenizers import CaptionTokenizer
from data_tools.workers import fitting_workers


@dataclass(frozen=True)
class Batch:
    """B pairs: `images` (R, F), `captions` (W,) ids, and `image_of_pair` (B,) int64 in the split.

    Before a feature cache fills it, `images` is (R,) int64 instead: positions of regions in the cache.
    """

    images: Packed
    captions: Packed
    image_of_pair: Tensor

    def to(self, device: torch.device) -> "Batch":
        """The same pairs on `device`."""
        pairs = self.image_of_pair.to(device, non_blocking=True)
        return Batch(self.images.to(device), self.captions.to(device), pairs)

    def split(self, count: int) -> list["Batch"]:
        """The pairs in `count` consecutive batches whose sizes differ by one at most."""
        cuts = [len(self.images) * part // count for part in range(count + 1)]
        return [
            Batch(self.images.slice(a, b), self.captions.slice(a, b), self.image_of_pair[a:b])
            for a, b in pairwise(cuts)
        ]

    def pin_memory(self) -> "Batch":
        """The same pairs in pinned memory; the data loader calls this before a copy to a GPU."""
        images = self.images.with_rows(self.images.rows.pin_memory())
        captions = self.captions.with_rows(self.captions.rows.pin_memory())
        return Batch(images, captions, self.image_of_pair.pin_memory())


class TrainingPairs(Dataset[Batch]):
    """The captions of a split, each with its image, augmented differently in every epoch.

    An item of this data set is a batch, so that the features of its images are read in one call and copied once.

    Args:
        feature_split: the split.
        tokenizer: of the captions.
        region_keep_prob: probability that a region is kept.
        token_change_prob: probability that a word is changed.
        seed: the augmentation depends on it, the epoch and the caption, on nothing else.
        cache_starts: (N,) where each image's regions begin in a feature cache; None reads them from their file.
    """

    def __init__(
        self,
        feature_split: FeatureSplit,
        tokenizer: CaptionTokenizer,
        region_keep_prob: float,
        token_change_prob: float,
        seed: int,
        cache_starts: np.ndarray | None = None,
    ) -> None:
        self.feature_split, self.tokenizer = feature_split, tokenizer
        self.words = read_captions(feature_split, tokenizer)
        self.counts, self.cache_starts = feature_split.counts, cache_starts
        self.region_keep_prob, self.token_change_prob, self.seed = region_keep_prob, token_change_prob, seed
        self.epoch = 0
        self._block: np.ndarray | None = None  # the images of every batch are read into this array

    def __len__(self) -> int:
        """How many captions there are."""
        return len(self.words)

    def __getitem__(self, captions: list[int]) -> Batch:
        """The pairs of these captions."""
        images = self.feature_split.split.caption_images[captions]
        kept, ids = [], []
        for caption, regions in zip(captions, self.counts[images].tolist(), strict=True):
            random = generator(self.seed, self.epoch, caption)
            kept.append(kept_regions(regions, self.region_keep_prob, random))
            ids.append(self._ids(caption, random))
        rows = torch.from_numpy(self._rows(images, kept))
        words = torch.tensor(list(chain.from_iterable(ids)))
        return Batch(
            Packed(rows, _offsets(kept)), Packed(words, _offsets(ids)), torch.from_numpy(images.astype(np.int64))
        )

    def largest_batch(self, pairs: int) -> int:
        """Bytes of a batch of so many pairs, if all of its images had the most regions."""
        features = self.feature_split.features
        width = 8 if self.cache_starts is not None else features.dim * features.dtype.itemsize
        return pairs * int(self.counts.max(initial=0)) * width

    def _ids(self, caption: int, random: np.random.Generator) -> list[int]:
        tokenizer, words = self.tokenizer, self.words.caption(caption)
        ids = changed_words(words, self.token_change_prob, tokenizer.mask_id, tokenizer.vocab_size, random)
        return [*tokenizer.prefix, *ids, *tokenizer.suffix]

    def _rows(self, images: np.ndarray, kept: list[np.ndarray]) -> np.ndarray:
        """Features (R, F) of the kept regions of each image or, with a cache, their positions (R,)."""
        counts = self.counts[images]
        starts = counts.cumsum() - counts if self.cache_starts is None else self.cache_starts[images]
        positions = np.concatenate(kept) + starts.repeat([len(regions) for regions in kept])
        if self.cache_starts is not None:
            return positions
        total = int(counts.sum())
        if self._block is None or len(self._block) < total:
            features = self.feature_split.features
            self._block = np.empty((total, features.dim), features.dtype)
        block = self.feature_split.gather(images, self._block)
        return block.take(positions, axis=0, mode="clip")  # this mode needs no buffer

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_block": None}


def _offsets(sequences: Sequence[Sized]) -> Tensor:
    return offsets_of(torch.tensor([len(sequence) for sequence in sequences]))


def epoch_order(captions: int, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """The captions of each step of an epoch: a permutation in full batches, an incomplete last one dropped.

    Fewer captions than `batch_size` make one batch.

    >>> [len(batch) for batch in epoch_order(captions=23, batch_size=5, seed=0, epoch=0)]
    [5, 5, 5, 5]
    """
    size = min(batch_size, captions)
    order = np.random.default_rng((seed, epoch)).permutation(captions).tolist()
    return [order[first : first + size] for first in range(0, captions - size + 1, size)]


def training_batches(
    pairs: TrainingPairs,
    epoch: int,
    steps: list[list[int]],
    workers: int,
    device: torch.device,
    cache: FeatureCache | None = None,
) -> Iterator[Batch]:
    """Batches of an epoch, on `device`; they are the same with any number of `workers` and any cache.

    Args:
        pairs: the training pairs, with the `cache_starts` of `cache`.
        epoch: the epoch, which determines the augmentation.
        steps: the captions of each batch.
        workers: processes that read and augment; 0 does it in this process.
        device: where the batches are copied to.
        cache: holds the features; None reads them from their file.
    """
    pairs.epoch = epoch  # before the workers start: each gets a copy
    loader = DataLoader(
        pairs,
        sampler=steps,
        batch_size=None,  # an item is a batch
        num_workers=fitting_workers(workers, pairs.largest_batch(max(map(len, steps), default=0))),
        pin_memory=device.type == "cuda",
    )
    for batch in loader:
        if cache is not None:
            batch = Batch(cache.fill(batch.images, device), batch.captions, batch.image_of_pair)
        yield batch.to(device)
