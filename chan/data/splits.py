"""A split of a data set with the features of its images, and batches of both for the encoders.

Shapes: N images and C captions of a split, n of them in a batch, R regions and W ids of a batch, K regions of one
image, F feature dimension.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from chan.packing import Packed, offsets_of, pack
from chan.text.tokenizers import CaptionTokenizer, WordIds, tokenize_captions
from data_tools.captions.splits import Split, load_split
from data_tools.errors import InputError
from data_tools.layout import feature_source, precomp_folder
from data_tools.store.features import RegionFeatures, open_features


@dataclass(frozen=True)
class FeatureSplit:
    """A split and the features of its images; image i of the split is row `rows[i]` of the features."""

    split: Split
    features: RegionFeatures
    rows: np.ndarray
    source: Path

    @cached_property
    def counts(self) -> np.ndarray:
        """(N,) int64: regions of each image of the split."""
        return self.features.counts[self.rows]

    def first(self, images: int) -> "FeatureSplit":
        """The first images with their captions; all where there are no more."""
        return FeatureSplit(self.split.first(images), self.features, self.rows[:images], self.source)

    def gather(self, images: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """(R, F) float16 or float32: the regions of the images at these positions, one image after another.

        Args:
            images: (n,) positions in the split, in any order.
            out: (at least R, F) array of the stored type to read into; the result is a view of it.
        """
        return self.features.gather(self.rows[images], out)

    def boxes(self, image: int) -> np.ndarray:
        """(K, 4) float32 x1 y1 x2 y2 in pixels of the upright image; NaN for a region without a box.

        Raises:
            InputError: the features have no boxes.
        """
        boxes = self.features.boxes(int(self.rows[image]))
        if boxes is None:
            raise InputError(f"{self.source}: holds no boxes; expected a feature store with boxes")
        return boxes


def open_split(data: Path, name: str, features: Path | None) -> FeatureSplit:
    """Open a split of the data set in the folder `data`.

    Args:
        data: the folder, with precomp/ in it.
        name: the split: train, dev, test, ...
        features: a features file or a folder that holds one; None looks in `data`.

    Raises:
        InputError: a file is absent or malformed, or an image has no features or no regions.
        UsageError: more than one features file could be meant.
    """
    split = load_split(precomp_folder(data), name)
    source = feature_source(data, name, features)
    stored = open_features(source, split)
    feature_split = FeatureSplit(split, stored, stored.rows(split.image_ids), source)
    empty = np.flatnonzero(feature_split.counts == 0)
    if len(empty):
        raise InputError(f"{source}: image {split.image_ids[empty[0]]}: expected at least one region")
    return feature_split


def check_dim(feature_split: FeatureSplit, dim: int) -> None:
    """`InputError` unless the features have dimension `dim`."""
    found = feature_split.features.dim
    if found != dim:
        source = feature_split.source
        raise InputError(f"{source}: features of {found} numbers per region; the model expects {dim}")


def check_features(feature_split: FeatureSplit) -> None:
    """`InputError` that names the first image of the split whose features are no finite numbers; reads all."""
    for image, image_id in enumerate(feature_split.split.image_ids):
        bad = np.flatnonzero(~np.isfinite(feature_split.gather(np.array([image]))).all(axis=1))
        if len(bad):
            raise InputError(
                f"{feature_split.source}: image {image_id}, region {bad[0]}: holds a number that is not finite; "
                "fix: extract it again (data-tools verify lists all such images)"
            )


def image_batch(feature_split: FeatureSplit, images: np.ndarray) -> Packed:
    """The regions, (R, F), of the images at these positions (n,)."""
    counts = torch.from_numpy(feature_split.counts[images])
    return Packed(torch.from_numpy(feature_split.gather(images)), offsets_of(counts))


def caption_batch(words: WordIds, tokenizer: CaptionTokenizer, captions: np.ndarray) -> Packed:
    """The ids, (W,) int64, of these captions (n,), without augmentation."""
    chosen = (chain.from_iterable(words.caption(index)) for index in captions)
    return pack([torch.tensor([*tokenizer.prefix, *ids, *tokenizer.suffix]) for ids in chosen])


def caption_lengths(words: WordIds, tokenizer: CaptionTokenizer) -> np.ndarray:
    """(C,) int64: how many ids `caption_batch` gives each caption."""
    return np.diff(words.word_offsets[words.caption_offsets]) + len(tokenizer.prefix) + len(tokenizer.suffix)


def read_captions(feature_split: FeatureSplit, tokenizer: CaptionTokenizer) -> WordIds:
    """The ids of the split's captions."""
    return tokenize_captions(tokenizer, feature_split.split.captions)
