"""Encode a split once, score its images against its captions, and measure recall on the whole split or in folds.

Shapes: N images, C captions of a split, R regions, W words, D joint dimension.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chan.data.splits import (
    FeatureSplit,
    caption_batch,
    caption_lengths,
    check_features,
    image_batch,
    read_captions,
)
from chan.evaluation import recall
from chan.evaluation.chance import Chance, chance
from chan.evaluation.intervals import Intervals, bootstrap
from chan.evaluation.recall import BlockScorer, Ranking, RetrievalRecall
from chan.model.chan import Chan
from chan.packing import Packed, gather_index, offsets_of
from chan.text.tokenizers import CaptionTokenizer
from data_tools.arithmetic import float32_products
from data_tools.captions.splits import Split
from data_tools.console import Progress
from data_tools.devices import to_device
from data_tools.errors import InputError, UsageError, reading

BATCH = 128  # images or captions encoded at a time

Encoder = Callable[[Packed], Packed]


@torch.inference_mode()
@float32_products("ieee")
def encode(
    model: Chan, opened: FeatureSplit, tokenizer: CaptionTokenizer, device: torch.device
) -> tuple[Packed, Packed]:
    """The embeddings, on `device`, of a split's regions (R, D) and words (W, D), in the split's order.

    Of a model with one vector, those of its images (N, D) and captions (C, D), each a sequence of one row.

    Raises:
        InputError: they are no finite numbers; the message names the image whose features are not.
    """
    model.eval()
    words = read_captions(opened, tokenizer)
    counts, lengths = opened.counts, caption_lengths(words, tokenizer)
    with Progress(f"encoding {opened.split.name}", len(counts) + len(lengths), "items") as progress:

        def encode_all(lengths: np.ndarray, batch: Callable[[np.ndarray], Packed], encoder: Encoder) -> Packed:
            """Encode in order of length, so that no time is spent on padding."""
            order = lengths.argsort(kind="stable")
            kept = np.ones_like(lengths) if model.has_one_vector else lengths
            offsets = offsets_of(torch.from_numpy(kept))
            rows: Tensor | None = None
            for first in range(0, len(lengths), BATCH):
                places = order[first : first + BATCH]
                part = encoder(batch(places).to(device)).rows
                if rows is None:
                    rows = part.new_empty(int(offsets[-1]), part.shape[1])
                rows.index_copy_(0, to_device(gather_index(offsets, torch.from_numpy(places)), device), part)
                progress.advance(len(places))
            assert rows is not None
            return Packed(rows, offsets)

        regions = encode_all(counts, lambda places: image_batch(opened, places), model.image_encoder)
        encoded = encode_all(lengths, lambda places: caption_batch(words, tokenizer, places), model.text_encoder)
    if not bool(torch.isfinite(regions.rows).all() & torch.isfinite(encoded.rows).all()):
        check_features(opened)
        raise InputError(f"{opened.source}: {opened.split.name}: the model's embeddings are no finite numbers")
    return regions, encoded


@torch.inference_mode()
def score(model: Chan, regions: Packed, words: Packed, precision: str = "fp32") -> Tensor:
    """(N, C) float32 scores of the embeddings of `encode`, in the order of the split's files.

    `precision` as for `pairwise_scores`.
    """
    return model.score(regions, words, precision)


@torch.inference_mode()
def measure(
    model: Chan, opened: FeatureSplit, tokenizer: CaptionTokenizer, device: torch.device
) -> RetrievalRecall:
    """Recall of a model on a whole split, without a score matrix."""
    scorer = embedding_blocks(model, *encode(model, opened, tokenizer, device))
    return recall.rank(scorer, len(opened.split.image_ids), torch.from_numpy(opened.split.caption_images)).recall()


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    Attributes:
        folds: into how many the images were divided.
        recall: averaged over the folds.
        intervals: 95 % intervals of it.
        chance: recall by chance, averaged over the folds.
        ranking: of all queries, each within its fold.
    """

    folds: int
    recall: RetrievalRecall
    intervals: Intervals
    chance: Chance
    ranking: Ranking = field(compare=False)


def embedding_blocks(model: Chan, regions: Packed, words: Packed, precision: str = "fp32") -> BlockScorer:
    """Blocks of the matrix of `score`, each computed from the embeddings when it is needed."""

    def block(images: range, captions: Tensor) -> Tensor:
        return model.score(regions.slice(images.start, images.stop), words.take(captions), precision)

    return block


def _fold_blocks(scorer: BlockScorer, first: int, captions: Tensor, progress: Progress) -> BlockScorer:
    """Blocks of the fold with images from `first` and these captions; advances `progress` by their pairs."""

    def block(images: range, places: Tensor) -> Tensor:
        scores = scorer(range(first + images.start, first + images.stop), captions[places])
        progress.advance(scores.numel())
        return scores

    return block


@torch.inference_mode()
def evaluate(split: Split, folds: int, scorer: BlockScorer, seed: int) -> Evaluation:
    """Measure recall in `folds` consecutive parts of a split's images, and average it over them.

    Args:
        split: the split.
        folds: 1 for the whole; 5 on COCO's 5,000 test images is the published 1K protocol.
        scorer: computes blocks of scores; see `recall.matrix_blocks` and `embedding_blocks`.
        seed: seed of the bootstrap.

    Raises:
        UsageError: the images cannot be cut into so many equal parts.
    """
    images = len(split.image_ids)
    if folds < 1 or images % folds:
        raise UsageError(f"--folds {folds}: does not divide the {images} images of split {split.name}")
    caption_images, size = torch.from_numpy(split.caption_images), images // folds
    members = [((caption_images // size) == fold).nonzero().squeeze(1) for fold in range(folds)]
    rankings = []
    with Progress(f"scoring {split.name}", size * sum(map(len, members)), "pairs") as progress:
        for fold, captions in enumerate(members):
            blocks = _fold_blocks(scorer, fold * size, captions, progress)
            rankings.append(recall.rank(blocks, size, caption_images[captions] - fold * size))
    parts = [ranking.recall() for ranking in rankings]
    ranking = Ranking.joined(rankings, size)
    found = recall.average(parts)
    return Evaluation(folds, found, bootstrap(ranking, seed), split_chance(split, folds), ranking)


def split_chance(split: Split, folds: int = 1) -> Chance:
    """Recall by chance on a split, averaged over `folds` consecutive parts of its images."""
    size = len(split.image_ids) // folds
    owners = split.caption_images
    parts = [chance(size, owners[owners // size == fold] - fold * size) for fold in range(folds)]
    sides = ([getattr(part, name) for part in parts] for name in ("i2t", "t2i"))
    return Chance(*(tuple(float(value) for value in np.mean(side, axis=0)) for side in sides))


def load_scores(path: Path, split: Split) -> Tensor:
    """A score matrix (N, C) that `chan evaluate --scores` wrote.

    Raises:
        InputError: the file is not a NumPy array, or its shape is not that of the split.
    """
    with reading(path, "not a NumPy array file"):
        scores = np.load(path, allow_pickle=False)
    expected = (len(split.image_ids), len(split.captions))
    if getattr(scores, "shape", None) != expected or scores.dtype.kind != "f":
        found = f"{scores.dtype} {scores.shape}" if isinstance(scores, np.ndarray) else "an archive of arrays"
        raise InputError(f"{path}: expected floats of shape {expected} for split {split.name}, found {found}")
    return torch.from_numpy(scores).float()


def as_document(result: RetrievalRecall) -> dict[str, Any]:
    """The numbers as nested plain data: rsum, i2t and t2i, each r1, r5, r10, medr and meanr."""
    return {"rsum": result.rsum, **asdict(result)}


def as_table(result: RetrievalRecall, by_chance: Chance, intervals: Intervals | None = None) -> str:
    """Recall in both directions for people; below each number its interval, where it is given, and chance."""
    lines = [f"{'':14}{'R@1':>12}{'R@5':>12}{'R@10':>12}{'MedR':>7}{'MeanR':>8}"]
    for name, key, side in (("image to text", "i2t", result.i2t), ("text to image", "t2i", result.t2i)):
        recalls = f"{side.r1:12.1f}{side.r5:12.1f}{side.r10:12.1f}"
        lines.append(f"{name:14}{recalls}{side.medr:7.0f}{side.meanr:8.1f}")
        if intervals is not None:
            bounds = (getattr(getattr(intervals, key), at) for at in ("r1", "r5", "r10"))
            lines.append(f"{'  95 %':14}" + "".join(f"{f'{low:.1f}-{high:.1f}':>12}" for low, high in bounds))
        lines.append(f"{'  chance':14}" + "".join(f"{value:12.1f}" for value in getattr(by_chance, key)))
    interval = "" if intervals is None else f"95 %: {intervals.rsum[0]:.1f}-{intervals.rsum[1]:.1f}; "
    return "\n".join([*lines, f"rsum {result.rsum:.1f} of 600 ({interval}chance: {by_chance.rsum:.1f})"])
