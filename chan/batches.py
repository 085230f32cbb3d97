"""Training batches: pairs of an image and one of its captions, augmented, packed.

Shapes: B pairs, R regions of all images, F feature dimension, W words of all captions.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from chan.augmentation import changed_words, generator, kept_regions
from chan.feature_cache import FeatureCache
from chan.packing import Packed, pack
from chan.splits import FeatureSplit, read_captions
from chan.word_ids import CaptionReader

Pair = tuple[Tensor, Tensor, int]


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


class TrainingPairs(Dataset[Pair]):
    """The captions of a split, each with its image, augmented anew in every epoch.

    Args:
        opened: the split.
        reader: makes ids of its captions.
        region_keep: probability that a region stays.
        token_change: probability that a word changes.
        seed: with the epoch and the caption it decides what the augmentation does.
        cache_starts: where each image's regions begin in a feature cache; None reads them from their file.
    """

    def __init__(
        self,
        opened: FeatureSplit,
        reader: CaptionReader,
        region_keep: float,
        token_change: float,
        seed: int,
        cache_starts: np.ndarray | None = None,
    ) -> None:
        self.opened, self.reader, self.words = opened, reader, read_captions(opened, reader)
        self.counts, self.cache_starts = opened.features.counts[opened.rows], cache_starts
        self.region_keep, self.token_change, self.seed = region_keep, token_change, seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, index: int) -> Pair:
        random = generator(self.seed, self.epoch, index)
        image = int(self.opened.split.caption_images[index])
        kept = kept_regions(int(self.counts[image]), self.region_keep, random)
        if self.cache_starts is None:
            regions = self.opened.regions(image)[kept]
        else:
            regions = kept + self.cache_starts[image]
        reader = self.reader
        words = changed_words(self.words.caption(index), self.token_change, reader.mask, reader.size, random)
        ids = torch.tensor([*reader.prefix, *words, *reader.suffix])
        return torch.from_numpy(regions), ids, image


def collate(pairs: list[Pair]) -> Batch:
    """Pack pairs into a batch."""
    regions, ids, images = zip(*pairs, strict=True)
    return Batch(pack(regions), pack(ids), torch.tensor(images))


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
        batch_sampler=steps,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=device.type == "cuda",
    )
    for batch in loader:
        if cache is not None:
            batch = Batch(cache.fill(batch.images), batch.captions, batch.image_of_pair)
        yield batch.to(device)
