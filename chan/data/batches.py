"""Training batches: pairs of an image and one of its captions, augmented, packed.

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


@dataclass(frozen=True)
class Batch:
    """B pairs: `images` (R, F), `captions` (W,) ids, and `image_of_pair` (B,) int64 in the split.

    On its way to a feature cache, `images` is (R,) int64 instead: positions of regions in the cache.
    """

    images: Packed
    captions: Packed
    image_of_pair: Tensor

    def to(self, device: torch.device) -> "Batch":
        """The same pairs on `device`."""
        pairs = self.image_of_pair.to(device, non_blocking=True)
        return Batch(self.images.to(device), self.captions.to(device), pairs)

    def split(self, parts: int) -> list["Batch"]:
        """The pairs in `parts` consecutive batches of equal size, or one less."""
        cuts = [len(self.images) * part // parts for part in range(parts + 1)]
        return [
            Batch(self.images.slice(a, b), self.captions.slice(a, b), self.image_of_pair[a:b])
            for a, b in pairwise(cuts)
        ]

    def pin_memory(self) -> "Batch":
        """Called by the loader where a GPU will take the copy."""
        images = self.images.with_rows(self.images.rows.pin_memory())
        captions = self.captions.with_rows(self.captions.rows.pin_memory())
        return Batch(images, captions, self.image_of_pair.pin_memory())


class TrainingPairs(Dataset[Batch]):
    """The captions of a split, each with its image, augmented anew in every epoch.

    An item is a batch, so that the features of its images are read in one call and copied once.

    Args:
        opened: the split.
        reader: makes ids of its captions.
        region_keep_prob: probability that a region stays.
        token_change_prob: probability that a word changes.
        seed: with the epoch and the caption it decides what the augmentation does.
        cache_starts: where each image's regions begin in a feature cache; None reads them from their file.
    """

    def __init__(
        self,
        opened: FeatureSplit,
        reader: CaptionTokenizer,
        region_keep_prob: float,
        token_change_prob: float,
        seed: int,
        cache_starts: np.ndarray | None = None,
    ) -> None:
        self.opened, self.reader, self.words = opened, reader, read_captions(opened, reader)
        self.counts, self.cache_starts = opened.features.counts[opened.rows], cache_starts
        self.region_keep_prob, self.token_change_prob, self.seed = region_keep_prob, token_change_prob, seed
        self.epoch = 0
        self._block: np.ndarray | None = None  # what the images of a batch are read into, again and again

    def __len__(self) -> int:
        """How many captions there are."""
        return len(self.words)

    def __getitem__(self, captions: list[int]) -> Batch:
        """The pairs of these captions."""
        images = self.opened.split.caption_images[captions]
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

    def _ids(self, caption: int, random: np.random.Generator) -> list[int]:
        reader = self.reader
        words = changed_words(
            self.words.caption(caption), self.token_change_prob, reader.mask, reader.size, random
        )
        return [*reader.prefix, *words, *reader.suffix]

    def _rows(self, images: np.ndarray, kept: list[np.ndarray]) -> np.ndarray:
        """Features (R, F) of the regions that stay of each image, or, with a cache, their positions (R,)."""
        counts = self.counts[images]
        starts = counts.cumsum() - counts if self.cache_starts is None else self.cache_starts[images]
        positions = np.concatenate(kept) + starts.repeat([len(own) for own in kept])
        if self.cache_starts is not None:
            return positions
        regions = int(counts.sum())
        if self._block is None or len(self._block) < regions:
            self._block = np.empty((regions, self.opened.features.dim), self.opened.features.dtype)
        return self.opened.gather(images, self._block).take(positions, axis=0, mode="clip")  # clip: unbuffered

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_block": None}


def _offsets(sequences: Sequence[Sized]) -> Tensor:
    return offsets_of(torch.tensor([len(sequence) for sequence in sequences]))


def epoch_order(captions: int, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """The captions of each step: a permutation in whole batches, its incomplete end left out.

    Fewer captions than `batch_size` make one batch.
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
    """Batches of an epoch, on `device`; the same ones however many `workers` read them, with any cache.

    Args:
        pairs: the training pairs, with the `cache_starts` of `cache`.
        epoch: which epoch's augmentation is meant.
        steps: the captions of each batch.
        workers: processes that read; 0 reads here.
        device: where the batches go.
        cache: where the features are, if not in their file.
    """
    pairs.epoch = epoch  # before the workers start, which copy it
    loader = DataLoader(
        pairs,
        sampler=steps,
        batch_size=None,  # an item is a batch
        num_workers=workers,
        pin_memory=device.type == "cuda",
    )
    for batch in loader:
        if cache is not None:
            batch = Batch(cache.fill(batch.images, device), batch.captions, batch.image_of_pair)
        yield batch.to(device)
