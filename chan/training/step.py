"""One training step: from a batch of pairs to changed weights.

The encoders may take the pairs in several parts. Then a first pass, without a gradient, gives the embeddings
of all pairs; the loss of the whole batch gives the gradient of each embedding; and a second pass, part by part,
carries it into the weights (Gao et al. 2021, "Scaling deep contrastive learning batch size under memory
limited setup"). The step is that of the whole batch, negatives included, at a part's memory and with the
forward pass of the encoders done twice.

Shapes: B pairs of all processes, b pairs of this one.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW

from chan.data.batches import Batch
from chan.model.chan import Chan
from chan.packing import Packed, join
from chan.training.distributed import Ranks, gather, gather_scores, gather_values
from chan.training.losses import negative_pairs

Criterion = Callable[[Tensor, Tensor], Tensor]
"""From scores (B, B) and negatives (B, B) to a loss."""

PRODUCTS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""The precision of the products of regions and words, by that of the training."""


class BothEncoders(nn.Module):
    """A model's two encoders as one module, whose single call is what several processes keep in step by."""

    def __init__(self, model: Chan) -> None:
        super().__init__()
        self.image_encoder, self.text_encoder = model.image_encoder, model.text_encoder

    def forward(self, images: Packed, captions: Packed) -> tuple[Packed, Packed]:
        """Features (R, F) and ids (W,) to embeddings (R, D) and (W, D)."""
        return self.image_encoder(images), self.text_encoder(captions)


def make_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """What keeps small gradients from vanishing in fp16; it does nothing in other precisions."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


@dataclass
class TrainingStep:
    """Takes steps.

    Attributes:
        model: the model, on `device`.
        optimizer: of its weights.
        scaler: of `make_scaler`.
        device: where the batches are.
        precision: fp32, bf16 or fp16: of the products in the encoders and of regions with words.
        parts: in how many the encoders take a batch.
        clip: the largest norm of the gradient.
        mask_duplicates: whether other captions of the same image are no negatives.
        ranks: this process among others.
    """

    model: Chan
    optimizer: AdamW
    scaler: torch.amp.GradScaler
    device: torch.device
    precision: str = "fp32"
    parts: int = 1
    clip: float = 2.0
    mask_duplicates: bool = True
    ranks: Ranks = Ranks()  # noqa: RUF009 - frozen
    encoders: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        self.encoders = BothEncoders(self.model)
        if self.ranks.count > 1:
            self.encoders = DistributedDataParallel(self.encoders, broadcast_buffers=False)

    def take(self, batch: Batch, criterion: Criterion, seed: int) -> Tensor:
        """Change the weights by one step and return the loss, detached, of the pairs of all processes.

        `seed` decides what BERT's dropout does.
        """
        self.optimizer.zero_grad()
        loss = self.gradients(batch, criterion, seed)
        self.scaler.unscale_(self.optimizer)
        clip_grad_norm_(self.model.parameters(), self.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss

    def gradients(self, batch: Batch, criterion: Criterion, seed: int) -> Tensor:
        """Add the (scaled) gradient of the loss to the weights' and return the loss, detached."""
        count = min(self.parts, len(batch.images))
        if count == 1:
            images, captions = self._embed(self.encoders, batch, seed)
            return self._backward(images, captions, batch.image_of_pair, criterion)
        parts = batch.split(count)
        with torch.no_grad():
            embedded = [self._embed(self.model_encoders, part, seed + n) for n, part in enumerate(parts)]
        images, captions = (join(side) for side in zip(*embedded, strict=True))
        for side in (images, captions):
            side.rows.requires_grad_()
        loss = self._backward(images, captions, batch.image_of_pair, criterion)
        sides = zip((images, captions), zip(*embedded, strict=True), strict=True)
        upstream = [_gradient(side.rows).split([len(p.rows) for p in own]) for side, own in sides]
        for n, part in enumerate(parts):
            with self._alone_until(n == len(parts) - 1):
                again = self._embed(self.encoders, part, seed + n)
                torch.autograd.backward([side.rows for side in again], [side[n] for side in upstream])
        return loss

    @property
    def model_encoders(self) -> nn.Module:
        """The encoders without what keeps processes in step."""
        return self.encoders.module if isinstance(self.encoders, DistributedDataParallel) else self.encoders

    def _embed(self, encoders: nn.Module, batch: Batch, seed: int) -> tuple[Packed, Packed]:
        torch.manual_seed(seed * self.ranks.count + self.ranks.rank)
        kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)
        with torch.autocast(self.device.type, dtype=kind, enabled=kind is not None):
            return encoders(batch.images, batch.captions)

    def _backward(self, images: Packed, captions: Packed, of_pair: Tensor, criterion: Criterion) -> Tensor:
        scores = self.model.score(images, gather(captions, self.ranks), PRODUCTS[self.precision])
        negatives = negative_pairs(gather_values(of_pair, self.ranks), self.mask_duplicates)
        loss = criterion(gather_scores(scores, self.ranks), negatives)
        # Distributed training averages what the processes add up to.
        self.scaler.scale(loss * self.ranks.count).backward()
        return loss.detach()

    def _alone_until(self, last: bool) -> AbstractContextManager[None]:
        """Processes exchange gradients once a step, with the last part."""
        if isinstance(self.encoders, DistributedDataParallel) and not last:
            return self.encoders.no_sync()
        return nullcontext()


def _gradient(rows: Tensor) -> Tensor:
    assert rows.grad is not None
    return rows.grad
