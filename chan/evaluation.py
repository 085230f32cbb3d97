"""Encode a split once, score all its images against all its captions, measure recall."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from chan import recall
from chan.model import Chan
from chan.packing import Packed, join
from chan.recall import RetrievalRecall
from chan.splits import FeatureSplit, caption_batch, image_batch, read_captions
from chan.word_ids import CaptionReader
from data_tools.console import Progress

BATCH = 128  # images or captions encoded at a time


@torch.inference_mode()
def encode(
    model: Chan, opened: FeatureSplit, reader: CaptionReader, device: torch.device
) -> tuple[Packed, Packed]:
    """The embeddings, on `device`, of a split's regions (R, D) and words (W, D), in the split's order."""
    model.eval()
    images, captions = len(opened.split.image_ids), len(opened.split.captions)
    words = read_captions(opened, reader)
    with Progress(f"encoding {opened.split.name}", images + captions, "items") as progress:

        def encode_all(count: int, batch: Callable[[range], Packed], encoder: torch.nn.Module) -> Packed:
            parts = []
            for first in range(0, count, BATCH):
                places = range(first, min(first + BATCH, count))
                parts.append(encoder(batch(places).to(device)))
                progress.advance(len(places))
            return join(parts)

        regions = encode_all(images, lambda places: image_batch(opened, places), model.image_encoder)
        return regions, encode_all(
            captions, lambda places: caption_batch(words, reader, places), model.text_encoder
        )


@torch.inference_mode()
def score_split(model: Chan, opened: FeatureSplit, reader: CaptionReader, device: torch.device) -> Tensor:
    """(images, captions) float32 scores of a split, on `device`, in the order of the split's files."""
    regions, words = encode(model, opened, reader, device)
    return model.score(regions, words)


def recall_of(scores: Tensor, opened: FeatureSplit) -> RetrievalRecall:
    """Recall of a split's (images, captions) scores."""
    return recall.measure(scores, torch.from_numpy(opened.split.caption_images))


def as_document(result: RetrievalRecall) -> dict[str, Any]:
    """The numbers as nested plain data: rsum, i2t and t2i, each r1, r5, r10, medr and meanr."""
    return {"rsum": result.rsum, **asdict(result)}
